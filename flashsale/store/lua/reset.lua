-- Deletes a product, whatever its keys hold.
--
-- KEYS  1 stock   2 buyers   3 sessions
-- Returns how many of stock and buyers there were.

local found = redis.call('DEL', KEYS[1], KEYS[2])
redis.call('DEL', KEYS[3])
return found
