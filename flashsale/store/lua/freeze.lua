-- Stops the sale of a product of which the database knows more than this store, until an operator has had it rebuilt.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 epoch and 3 version as they were found here, '' and 0 for none   4 epoch and 5 version in the
--       database
-- Returns 1 when it is frozen now, 0 when it was before, or is not what was found any more.

local sale = redis.call('HMGET', KEYS[4], 'epoch', 'version', 'state')
local found, known = tonumber(ARGV[3]), tonumber(ARGV[5])
if sale[3] == 'frozen' or (sale[1] or '') ~= ARGV[2] or (not sale[1] and redis.call('EXISTS', KEYS[1]) == 1)
    -- it was behind and is not any more; one that was found ahead is so with other changes
    or (sale[1] == ARGV[4] and found < known and tonumber(sale[2] or 0) >= known) then
  return 0
end
if not sale[1] then
  redis.call('HSET', KEYS[4], 'epoch', ARGV[4], 'version', ARGV[5], 'sold', '0')
end
redis.call('HSET', KEYS[4], 'state', 'frozen')
redis.call('SADD', KEYS[12], ARGV[1])
return 1
