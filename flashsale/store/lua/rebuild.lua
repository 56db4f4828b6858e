-- Begins a product anew where the database knows it to be; whatever else its keys must hold is written after that. It
-- stays frozen until then.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 epoch   3 version   4 the checkpoint: JSON of the counters at that version   5 units left
--       from 6 on names and values of the sale's terms
-- Returns 1 when that was done, 0 when nothing is lost here: the ledger goes as far as the database, or farther.

local sale = redis.call('HMGET', KEYS[4], 'epoch', 'version', 'state')
-- frozen at that version or behind it: with other changes, or whoever began it anew was stopped before the rest
if sale[1] == ARGV[2] and sale[3] ~= 'frozen' and tonumber(sale[2] or 0) >= tonumber(ARGV[3])
    and redis.call('EXISTS', KEYS[1], KEYS[5]) == 2 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[5])
redis.call('DEL', KEYS[4], KEYS[5], KEYS[9], KEYS[10]) -- what was answered here may be of sales that there never were
redis.call('HSET', KEYS[4], 'epoch', ARGV[2], 'version', ARGV[3], 'sold', '0', 'held', '0', 'due', '0', 'state', 'frozen',
  'moved', ARGV[3], 'stored', ARGV[3], 'checkpoint', ARGV[4], unpack(ARGV, 6))
-- an empty ledger, whose next change is the one behind that version
redis.call('XADD', KEYS[5], ARGV[3] .. '-0', 'at', '0')
redis.call('XTRIM', KEYS[5], 'MAXLEN', 0)
redis.call('SADD', KEYS[12], ARGV[1])
return 1
