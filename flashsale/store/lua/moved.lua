-- Notes up to which version the changes of a product are in the database, unless it has been opened anew or deleted.
--
-- KEYS  as in frame.lua
-- ARGV  1 epoch   2 version   3 product id
-- Returns 1 when it was noted.

if redis.call('HGET', KEYS[4], 'epoch') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[4], 'moved', ARGV[2])
redis.pcall('PUBLISH', 'flashsale_moved', ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
return 1
