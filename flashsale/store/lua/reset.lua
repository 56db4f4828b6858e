-- Deletes a product, whatever its keys hold.
--
-- KEYS  as in frame.lua, and 14 products_moved
-- ARGV  1 product id   2 discard: '1' also what is not in the database yet
-- Returns how many of its keys there were, but for the sessions; or, below 0, how many changes stand in the way.

if ARGV[2] ~= '1' and unmoved() > 0 then
  return -unmoved()
end
local found = redis.call('DEL', KEYS[1], KEYS[2], unpack(KEYS, 4, 11))
redis.call('DEL', KEYS[3])
redis.pcall('SREM', KEYS[12], ARGV[1])
redis.pcall('ZREM', KEYS[13], ARGV[1])
return found
