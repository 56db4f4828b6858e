-- Deletes a product, whatever its keys hold.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id
-- Returns how many of its keys there were, but for the sessions.

local found = redis.call('DEL', KEYS[1], KEYS[2], unpack(KEYS, 4, 11))
redis.call('DEL', KEYS[3])
redis.pcall('SREM', KEYS[12], ARGV[1])
redis.pcall('ZREM', KEYS[13], ARGV[1])
return found
