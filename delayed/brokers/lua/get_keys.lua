-- Looks at small values.
--
-- KEYS[1] -> KEYVAL
-- KEYS[2] -> KEYEND
-- ARGV -> names
-- Returns for each {version, value, ms until it is forgotten or -1 if it has no end}, or {} if there is none.

local now, reply = clock(), {}
for i, name in ipairs(ARGV) do
  local version, value, till = live_key(name, now)
  reply[i] = version and {version, value, till and till - now or -1} or {}
end
return reply
