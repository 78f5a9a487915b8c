-- Gives each request another head, as clients do that number or time what they send.
local number = 0

request = function()
  number = number + 1
  wrk.headers["X-Request-Id"] = number
  return wrk.format()
end
