-- Deletes the sale of a period that is long over, once nobody needs it here: nothing is held, and the database has all of
-- it, as a mover has noted that writes there. Where there is none it stays, as nothing here knows more of its orders.
--
-- KEYS  as in frame.lua, of the sale, and 14 products_moved   15 schedules_sales
-- ARGV  1 product id   2 for how long it is left alone, in seconds, if it must stay
-- Returns 1 when it was deleted; 0 when it stays, or there is none.

local at, now_s = redis.call('ZSCORE', KEYS[15], ARGV[1]), tonumber(redis.call('TIME')[1])
if not at or tonumber(at) > now_s then
  return 0
end
redis.call('ZADD', KEYS[15], now_s + ARGV[2], ARGV[1]) -- first: one whose keys are damaged is to hinder no others
local sale = redis.call('HMGET', KEYS[4], 'closes_at', 'state')
if sale[2] == 'frozen' then -- until it is rebuilt, which gives it its terms
  return 0
end
local closes_at = tonumber(sale[1] or 0)
if closes_at == 0 or closes_at > now_s then -- an operator has deleted it, or sells something else of that id
  redis.call('ZREM', KEYS[15], ARGV[1])
  return 0
end
if redis.call('EXISTS', KEYS[14]) == 0 or redis.call('HEXISTS', KEYS[4], 'stored') == 0 or unmoved() ~= 0
    or redis.call('ZCARD', KEYS[7]) > 0 then
  return 0
end
delete_product(ARGV[1])
redis.call('ZREM', KEYS[15], ARGV[1])
return 1
