-- Opens a sale: sets the stock and clears the buyers that an earlier sale of the same id left. The sessions stay: a
-- batch that is still on its way from before must find them.
--
-- KEYS  1 stock   2 buyers   3 sessions
-- ARGV  1 stock in units   2 force: '1' also when there are buyers
-- Returns the number of buyers that stand in the way (nothing was changed), or 0 when the sale is open.

local buyers = redis.call('EXISTS', KEYS[2]) == 1 and redis.call('LLEN', KEYS[2]) or 0
if buyers > 0 and ARGV[2] ~= '1' then
  return buyers
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.pcall('PERSIST', KEYS[3]) -- see lua/purchase.lua: those of a product that did not exist were to expire
return 0
