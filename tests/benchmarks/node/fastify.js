// The same with Fastify and its JWT plugin.
const bcrypt = require("bcryptjs");
const fastify = require("fastify")();

const users = { demo: bcrypt.hashSync(process.env.PASSWORD, 10) };
fastify.register(require("@fastify/jwt"), { secret: process.env.SECRET });

fastify.post("/authenticate", async (request, reply) => {
  const { username, password } = request.body;
  if (!(await bcrypt.compare(password, users[username] || ""))) {
    return reply.code(401).send({ success: false, message: "Invalid username and password" });
  }
  return { token: fastify.jwt.sign({ sub: username, username }, { expiresIn: 3600 }) };
});

async function verify(request, reply) {
  try {
    await request.jwtVerify();
  } catch (error) {
    return reply.code(401).send({ success: false, error: "Invalid authorization token" });
  }
}

fastify.get("/protected", { onRequest: verify }, async () => (
  { message: "Welcome to the protected page" }));
fastify.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
