"""The guarded page with FastAPI and PyJWT, as FastAPI's documentation has it."""

import os

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer

app = FastAPI()
SECRET = os.environ["SECRET"]


async def current_user(token: str = Depends(OAuth2PasswordBearer(tokenUrl="token"))):
    try:
        return jwt.decode(
            token, SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]})["sub"]
    except jwt.InvalidTokenError:
        raise HTTPException(401, "Invalid authorization token")


@app.get("/protected")
async def protected(user: str = Depends(current_user)):
    return {"message": "Welcome to the protected page"}
