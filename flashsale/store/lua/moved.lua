-- Notes up to which version the changes of a product were handed on, unless it has been opened anew or deleted.
--
-- KEYS  as in frame.lua
-- ARGV  1 epoch   2 version   3 product id   4 stored: '1' when they are in the database
-- Returns 1 when it was noted.

local sale = redis.call('HMGET', KEYS[4], 'epoch', 'moved')
if sale[1] ~= ARGV[1] then
  return 0
end
if (tonumber(sale[2] or 0) or 0) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[4], 'moved', ARGV[2])
end
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[4], 'stored', ARGV[2])
  redis.pcall('PUBLISH', 'flashsale_moved', ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
end
return 1
