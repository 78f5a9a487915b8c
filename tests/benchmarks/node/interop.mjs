// Reads {key, token} from standard input; writes what jsonwebtoken and jose read in the token, and
// a token that each of them makes of the same claims.
import { readFileSync } from "node:fs";
import * as jose from "jose";
import jsonwebtoken from "jsonwebtoken";

const { key, token } = JSON.parse(readFileSync(0, "utf8"));
const secret = new TextEncoder().encode(key);
const options = { algorithms: ["HS256"], issuer: "https://issuer.example" };
const { payload } = await jose.jwtVerify(token, secret, { ...options, typ: "JWT" });
console.log(JSON.stringify({
  read: { jose: payload, jsonwebtoken: jsonwebtoken.verify(token, key, options) },
  made: {
    jose: await new jose.SignJWT(payload).setProtectedHeader({ alg: "HS256" }).sign(secret),
    jsonwebtoken: jsonwebtoken.sign(payload, key),
  },
}));
