-- Holds: {HOLD, user, quantity, item, request id, version, created at}, for as long as they have a deadline. The record of
-- one that expired stays as it was: that it has no deadline any more says how it ended.

local function as_deadline(value)
  return tonumber(value or nil) or false
end

local function load_deadlines(tokens)
  load('ZMSCORE', KEYS[7], tokens, deadlines, as_deadline)
end

local function set_deadline(token, at)
  deadlines[token], deadlines_touched[token] = at, true
end

local function give_back(kind, hold)
  stock, held = stock + hold[3], held - hold[3]
  count_units(hold[2], -hold[3])
  set_taken(hold[4], false)
  change(kind, hold[2], hold[3], hold[4], '', hold[6], 0)
end

local function unpack_hold(record)
  local hold = cmsgpack.unpack(record)
  return type(hold) == 'table' and hold[1] == HOLD and hold or unreadable()
end

-- The holds that are due, the oldest first, each once: token and hold, nil for a deadline of nothing. No token at the end.
local page, page_holds, page_index, page_offset = {}, {}, 0, 0
local passed = 0 -- by next_due(): they are the first of the deadlines, and go all at once
local function next_due()
  page_index = page_index + 1
  if page_index > #page then
    page = redis.call('ZRANGEBYSCORE', KEYS[7], '-inf', now_s, 'LIMIT', page_offset, SWEEP_COUNT_MAX)
    page_index, page_offset = 1, page_offset + #page
    load_kept(page)
    local names = {}
    for i = 1, #page do
      local record = deadlines[page[i]] ~= false and kept[page[i]] -- false: it has ended in this batch
      page_holds[i] = record and unpack_hold(record)
      names[#names + 1] = record and page_holds[i][2] or nil
    end
    if limit > 0 then
      load('HMGET', KEYS[6], names, users, as_units)
    end
  end
  passed = page[page_index] and passed + 1 or passed
  return page[page_index], page_holds[page_index]
end

local PASSED = 'passed' -- what touched a deadline: it goes with those that were passed

-- Returns up to so many expired holds to stock, or until so many units are there.
local function sweep(count_max, units)
  local swept = 0
  while due > 0 and due <= now_s and swept < count_max and stock < units do
    local token, hold = next_due()
    if not token then
      local ahead = redis.call('ZRANGEBYSCORE', KEYS[7], '(' .. now_s, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      due = tonumber(ahead[2] or 0)
    else
      if deadlines[token] ~= false then
        swept = swept + 1
        if hold then
          give_back('expired', hold)
        end
      end
      deadlines[token], deadlines_touched[token] = false, PASSED
    end
  end
  return swept
end

local due_before, more_due, lazy_count = due, false, LAZY_COUNT_MAX
