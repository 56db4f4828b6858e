-- Stops the sale of a product of which the database knows more than this store, until an operator has had it rebuilt.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 epoch as it was found here, '' for none   3 epoch and 4 version in the database
-- Returns 1 when it is frozen now, 0 when it was before, or is not what was found any more.

local sale = redis.call('HMGET', KEYS[4], 'epoch', 'version', 'state')
if sale[3] == 'frozen' or (sale[1] or '') ~= ARGV[2] or (not sale[1] and redis.call('EXISTS', KEYS[1]) == 1)
    or (sale[1] == ARGV[3] and tonumber(sale[2] or 0) >= tonumber(ARGV[4])) then
  return 0
end
if not sale[1] then
  redis.call('HSET', KEYS[4], 'epoch', ARGV[3], 'version', ARGV[4], 'sold', '0')
end
redis.call('HSET', KEYS[4], 'state', 'frozen')
redis.call('SADD', KEYS[12], ARGV[1])
return 1
