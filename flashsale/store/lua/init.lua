-- Opens the sale that an operator asks for.
--
-- KEYS  as in frame.lua, and 14 products_moved
-- ARGV  1 product id   2 stock in units   3 force: '1' also when there are buyers or holds
--       4 epoch, 8 hex digits   5 limit   6 opens at   7 closes at   8 hold time   9 hold time with all extensions
--       10 numbered: '1' when each unit is an item of its own   11 discard: '1' also what is not in the database yet
-- Returns {buyers, holds, changes} that stand in the way (nothing was changed; changes as in unmoved.lua), or {0, 0, 0}
-- when the sale is open.

if ARGV[3] ~= '1' then
  local buyers, holds = redis.call('LLEN', KEYS[2]), redis.call('ZCARD', KEYS[7])
  if buyers + holds > 0 then
    return {buyers, holds, 0}
  end
end
local behind = ARGV[11] ~= '1' and unmoved() or 0
if behind ~= 0 then
  return {0, 0, behind}
end
open_sale(ARGV[1], ARGV[2], ARGV[4], {
  limit = ARGV[5], opens_at = ARGV[6], closes_at = ARGV[7], hold_s = ARGV[8], hold_total_s = ARGV[9],
  numbered = ARGV[10] == '1',
})
return {0, 0, 0}
