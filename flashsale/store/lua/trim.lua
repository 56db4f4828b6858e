-- Forgets the beginning of a product's ledger, and notes what it added up to.
--
-- KEYS  as in frame.lua
-- ARGV  1 epoch   2 the checkpoint as it was found, '' for none   3 the new one: JSON of the counters up to the last
--       change that goes   4 id of the first message that stays
-- Returns 1 when it was done, 0 when somebody else was first, or the product has been opened anew.

local found = redis.call('HMGET', KEYS[4], 'epoch', 'checkpoint')
if found[1] ~= ARGV[1] or (found[2] or '') ~= ARGV[2] or #redis.call('XRANGE', KEYS[5], ARGV[4], ARGV[4]) == 0 then
  return 0
end
redis.call('HSET', KEYS[4], 'checkpoint', ARGV[3])
redis.call('XTRIM', KEYS[5], 'MINID', ARGV[4])
return 1
