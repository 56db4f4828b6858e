-- Writes what a product's ledger says into its keys, if nothing has changed since that was found out.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 epoch, 3 version, 4 stock and 5 number of repairs as they were found, '' for none
--       from 6 on commands: count of arguments, name, number of the key, arguments
-- Returns 1 when it was done, 0 when something has changed.

local function found(command, ...)
  local value = redis.pcall(command, ...)
  return type(value) == 'string' and value or ''
end

if found('HGET', KEYS[4], 'epoch') ~= ARGV[2] or found('HGET', KEYS[4], 'version') ~= ARGV[3]
    or found('GET', KEYS[1]) ~= ARGV[4] or found('HGET', KEYS[4], 'repairs') ~= ARGV[5] then
  return 0
end
local i = 6
while i <= #ARGV do
  local last = i + 2 + ARGV[i]
  redis.call(ARGV[i + 1], KEYS[tonumber(ARGV[i + 2])], unpack(ARGV, i + 3, last))
  i = last + 1
end
-- two who repair at once may give a hold a secret each, and its units would return twice
redis.call('HSET', KEYS[4], 'repairs', (tonumber(ARGV[5]) or 0) + 1)
return 1
