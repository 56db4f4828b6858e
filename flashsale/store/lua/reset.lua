-- Deletes a product, whatever its keys hold.
--
-- KEYS  as in frame.lua, and 14 products_moved
-- ARGV  1 product id   2 discard: '1' also what is not in the database yet
-- Returns how many of its keys there were, but for the sessions, and how many changes stand in the way (unmoved.lua).

local behind = ARGV[2] ~= '1' and unmoved() or 0
if behind ~= 0 then
  return {0, behind}
end
local found = redis.call('DEL', KEYS[1], KEYS[2], unpack(KEYS, 4, 11))
redis.call('DEL', KEYS[3])
redis.pcall('SREM', KEYS[12], ARGV[1])
redis.pcall('ZREM', KEYS[13], ARGV[1])
return {found, 0}
