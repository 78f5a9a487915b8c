// The tutorial's application. KEY=object prepares the key once; the tutorial passes a string.
const crypto = require("crypto");
const bcrypt = require("bcryptjs");
const bodyParser = require("body-parser");
const express = require("express");
const jwt = require("jsonwebtoken");

const secret = process.env.SECRET;
const key = process.env.KEY === "object" ? crypto.createSecretKey(Buffer.from(secret)) : secret;
const users = { demo: bcrypt.hashSync(process.env.PASSWORD, 10) };
const app = express();
app.use(bodyParser.json());

app.post("/authenticate", (req, res) => {
  const { username, password } = req.body;
  bcrypt.compare(password, users[username] || "", (error, same) => {
    if (error || !same) {
      return res.status(401).json({ success: false, message: "Invalid username and password" });
    }
    res.json({ token: jwt.sign({ sub: username, username }, key, { expiresIn: 3600 }) });
  });
});

const guarded = express.Router();
guarded.use((req, res, next) => {
  const header = req.headers.authorization;
  if (!header) {
    return res.status(401).json({ success: false, error: "An authorization header is required" });
  }
  jwt.verify(header.split(" ")[1], key, (error, claims) => {
    if (error) {
      return res.status(401).json({ success: false, error: "Invalid authorization token" });
    }
    req.claims = claims;
    next();
  });
});
guarded.get("/", (req, res) => res.json({ message: "Welcome to the protected page" }));
app.use("/protected", guarded);
app.listen(Number(process.env.PORT), "127.0.0.1");
