-- Writes what a product's ledger says into its keys, if nothing has changed since that was found out.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 epoch, 3 version and 4 stock as they were found, '' for none
--       from 5 on commands: count of arguments, name, number of the key, arguments
-- Returns 1 when it was done, 0 when something has changed.

local function found(command, ...)
  local value = redis.pcall(command, ...)
  return type(value) == 'string' and value or ''
end

if found('HGET', KEYS[4], 'epoch') ~= ARGV[2] or found('HGET', KEYS[4], 'version') ~= ARGV[3]
    or found('GET', KEYS[1]) ~= ARGV[4] then
  return 0
end
local i = 5
while i <= #ARGV do
  local last = i + 2 + ARGV[i]
  redis.call(ARGV[i + 1], KEYS[tonumber(ARGV[i + 2])], unpack(ARGV, i + 3, last))
  i = last + 1
end
return 1
