// What tests/benchmarks/tokens.py does, with a library of npm.
const { createSecretKey, randomBytes } = require("crypto");
const { createInterface } = require("readline");

const KEY = "0123456789abcdef".repeat(4);
const CLAIMS = { sub: "alice", username: "alice", sid: "Jf4UWVmDcHyQVdZqQm8M1w" };

function dated() {
  const now = Math.floor(Date.now() / 1000);
  return { ...CLAIMS, iat: now, exp: now + 3600, jti: randomBytes(16).toString("base64url") };
}

function jsonwebtoken(key) {
  const jwt = require("jsonwebtoken");
  return [(token) => jwt.verify(token, key, { algorithms: ["HS256"] }),
    () => jwt.sign(dated(), key, { algorithm: "HS256" })];
}

const LIBRARIES = {
  "jsonwebtoken": () => jsonwebtoken(KEY),
  "jsonwebtoken, KeyObject": () => jsonwebtoken(createSecretKey(Buffer.from(KEY))),
  "fast-jwt": () => {
    const { createSigner, createVerifier } = require("fast-jwt");
    const sign = createSigner({ key: KEY, algorithm: "HS256" });
    return [createVerifier({ key: KEY, algorithms: ["HS256"], requiredClaims: ["exp", "sub"] }),
      () => sign(dated())];
  },
};

const [verify, sign] = LIBRARIES[process.argv[2]]();
const token = sign();
createInterface({ input: process.stdin }).on("line", (line) => {
  const [task, count] = line.split(" ");
  const run = task === "verify" ? () => verify(token) : sign;
  const start = process.hrtime.bigint();
  for (let i = 0; i < Number(count); i += 1) {
    run();
  }
  console.log(Number(process.hrtime.bigint() - start) / 1e9);
});
