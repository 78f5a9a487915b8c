// The guarded page with Hono and its JWT middleware, on Bun.
const { Hono } = require("hono");
const { jwt } = require("hono/jwt");

const app = new Hono();
app.use("/protected", jwt({ secret: process.env.SECRET, alg: "HS256" }));
app.get("/protected", (context) => context.json({ message: "Welcome to the protected page" }));
Bun.serve({ hostname: "127.0.0.1", port: Number(process.env.PORT), fetch: app.fetch });
