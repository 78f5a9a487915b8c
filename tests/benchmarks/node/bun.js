// The guarded page with Bun's own HTTP server and fast-jwt.
const { createVerifier } = require("fast-jwt");

const verify = createVerifier({
  key: process.env.SECRET, algorithms: ["HS256"], requiredClaims: ["exp"] });

function isSignedIn(request) {
  const [scheme, token] = (request.headers.get("authorization") || "").split(" ");
  try {
    return scheme === "Bearer" && Boolean(verify(token));
  } catch (error) {
    return false;
  }
}

Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.PORT),
  routes: {
    "/protected": {
      GET: (request) => (isSignedIn(request)
        ? Response.json({ message: "Welcome to the protected page" })
        : Response.json({ error: "Invalid authorization token" }, { status: 401 })),
    },
  },
});
