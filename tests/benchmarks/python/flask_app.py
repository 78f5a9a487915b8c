"""The tutorial's application with Flask and Flask-JWT-Extended, as their documentation has it."""

import os

from flask import Flask, jsonify, request
from flask_jwt_extended import JWTManager, create_access_token, jwt_required
from werkzeug.security import check_password_hash, generate_password_hash

app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = os.environ["SECRET"]
JWTManager(app)
users = {"demo": generate_password_hash(os.environ["PASSWORD"])}


@app.post("/authenticate")
def authenticate():
    fields = request.get_json()
    if not check_password_hash(users.get(fields["username"], ""), fields["password"]):
        return jsonify(success=False, message="Invalid username and password"), 401
    return jsonify(token=create_access_token(identity=fields["username"]))


@app.get("/protected")
@jwt_required()
def protected():
    return jsonify(message="Welcome to the protected page")
