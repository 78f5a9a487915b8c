// The guarded page with net/http and golang-jwt.
package main

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"

	"github.com/golang-jwt/jwt"
)

var secret = []byte(os.Getenv("SECRET"))
var parser = jwt.Parser{ValidMethods: []string{"HS256"}}

func key(token *jwt.Token) (interface{}, error) { return secret, nil }

func answer(response http.ResponseWriter, status int, fields interface{}) {
	response.Header().Set("Content-Type", "application/json")
	response.WriteHeader(status)
	json.NewEncoder(response).Encode(fields)
}

func protected(response http.ResponseWriter, request *http.Request) {
	token, isBearer := strings.CutPrefix(request.Header.Get("Authorization"), "Bearer ")
	claims := jwt.StandardClaims{}
	_, err := parser.ParseWithClaims(token, &claims, key)
	if !isBearer || err != nil || claims.ExpiresAt == 0 {
		answer(response, 401, map[string]string{"error": "Invalid authorization token"})
		return
	}
	answer(response, 200, map[string]string{"message": "Welcome to the protected page"})
}

func main() {
	http.HandleFunc("/protected", protected)
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
