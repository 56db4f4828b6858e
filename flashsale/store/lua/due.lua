-- Opens the sale of a schedule's present period, unless there is or was one. Whoever comes first does it, by the clock of
-- the store alone.
--
-- KEYS  as in frame.lua, of the sale, and 14 products_moved   15 schedules   16 schedules_opened   17 schedules_sales
-- ARGV  1 product id   2 name of the schedule   3 when the period began, as the caller reckons   4 epoch, 8 hex digits
-- Returns 1 when it was opened; 0 when it is not due: another one was first, the period is over or has not begun, or
-- there is no such schedule any more.

local known = redis.call('HGET', KEYS[15], ARGV[2])
if not known then
  return 0
end
local schedule, now_s = cjson.decode(known), tonumber(redis.call('TIME')[1])
local begins_at = now_s - now_s % schedule.every_s
if begins_at ~= tonumber(ARGV[3]) then
  return 0
end
-- what was opened once is not opened again, also when an operator has deleted it; and while a sale lasts there is no other
local noted = redis.call('HGET', KEYS[16], ARGV[2])
if noted then
  local last = cjson.decode(noted)
  local is_far_ahead = last.begins_at - now_s > last.ends_at - last.begins_at -- opened by a clock that was wrong
  if last.ends_at > begins_at and not is_far_ahead then
    return 0
  end
end
local ends_at = begins_at + schedule.every_s
local delete_at = ends_at + schedule.keep_s
redis.call('ZCARD', KEYS[17]) -- a key of another type is to stop this before the first write

-- a sale that is there without a note is that of this period: the schedule was removed and added again
local is_new = redis.call('EXISTS', KEYS[1], KEYS[4]) == 0
local item_count, numbered = schedule.item_count, schedule.numbered
if not is_new then -- with other terms since, which are the next sale's
  local found = redis.call('HMGET', KEYS[4], 'initial', 'items')
  if found[1] then -- else it is frozen before it was opened here, and has none yet
    item_count, numbered = tonumber(found[1]) or item_count, found[2] and true or false
  end
else
  open_sale(ARGV[1], string.format('%.0f', schedule.item_count), ARGV[4], {
    limit = schedule.limit, opens_at = begins_at, closes_at = ends_at, hold_s = schedule.hold_s,
    hold_total_s = schedule.hold_total_s, numbered = schedule.numbered,
  })
end
redis.call('HSET', KEYS[16], ARGV[2], string.format(
  '{"schedule":%s,"product_id":%s,"begins_at":%.0f,"ends_at":%.0f,"item_count":%.0f,"numbered":%s}',
  cjson.encode(ARGV[2]), cjson.encode(ARGV[1]), begins_at, ends_at, item_count,
  numbered and 'true' or 'false'))
redis.call('ZADD', KEYS[17], delete_at, ARGV[1])
return is_new and 1 or 0
