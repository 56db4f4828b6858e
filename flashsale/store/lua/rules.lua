-- The rules for buyers, request by request: what memory.py says.

-- The first answer of a request that was seen before, or MISMATCH; nil when it is new. `id` is '=' and its request id.
-- What it asked for then may be one of several lines, if that was rebuilt (store/rebuild.py).
local function seen(id, asked)
  local answer, asked_then = find_kept(id)
  if answer then
    local same = asked_then == asked or string.find(asked_then, '\n' .. asked .. '\n', 1, true)
    return same and again(answer) or bare(MISMATCH)
  end
end

-- Counts a sale that is in the ledger as the last change; returns its row.
local function sell(user, quantity, item)
  sold = sold + quantity
  buyers[#buyers + 1] = user
  -- row(SUCCESS, stock, version, now_ms, item) in half the time
  return struct.pack('>BBBLBLBLBI4', 149, SUCCESS, 207, stock, 207, version, 207, now_ms, 206, item)
end

local SOLD_OUT_ROW = row(SOLD_OUT, 0)
local where = standing()

-- PURCHASE and RESERVE: {kind, user, quantity, id, item, asked, hold seconds, token}. What is asked for is the JSON of
-- user, quantity, item and request id: it is what the ledger will hold, and what a repeated request must say again.
local function take(request)
  local kind, user, quantity, id, item, asked = unpack(request, 1, 6)
  local content = kind == PURCHASE and asked or asked .. '/' .. request[7] -- a hold is asked for with its time
  if id ~= '' then
    local first = seen(id, content)
    if first then
      return first
    end
  end
  if where == 'closed' then
    return bare(CLOSED)
  elseif where == 'paused' then
    return bare(PAUSED)
  elseif where == 'not_open' then
    return row(NOT_OPEN, opens_at)
  elseif item > (items or 0) then
    return row(FAILED, REASON.item_not_found)
  elseif items and quantity > 1 then
    return row(FAILED, REASON.one_item_at_a_time)
  end
  if stock < quantity and quantity <= stock + held and due > 0 and due <= now_s then
    lazy_count = lazy_count - sweep(lazy_count, quantity)
  end
  if stock < quantity then
    return stock == 0 and SOLD_OUT_ROW or row(SOLD_OUT, stock)
  elseif limit > 0 and units_of(user) + quantity > limit then
    return bare(LIMIT_EXCEEDED)
  elseif items then
    if item == 0 then
      item = free_item()
      if not item then
        defect = 'its items are all taken, though units are left'
        return SOLD_OUT_ROW
      end
    elseif is_taken(item) then
      return bare(ITEM_TAKEN)
    end
    set_taken(item, true)
  end
  stock = stock - quantity
  count_units(user, quantity)
  if stock == 0 then
    went_out = true
  end
  local answer
  if kind == PURCHASE then
    if item == request[5] then
      version = version + 1
      changes[#changes + 1] = '["sold",' .. stock .. ',' .. asked .. ']'
    else
      change('sold', user, quantity, item, string.sub(id, 2), 0, 0)
    end
    answer = sell(user, quantity, item)
  else
    local expires_at = from_s + (request[7] == 0 and hold_s or math.min(request[7], hold_s))
    change('held', user, quantity, item, string.sub(id, 2), 0, expires_at)
    held = held + quantity
    keep(request[8], row(HOLD, user, quantity, item, string.sub(id, 2), version, from_s))
    set_deadline(request[8], expires_at)
    answer = row(HELD, request[8], expires_at, stock, version, item)
  end
  if id ~= '' then
    keep(id, answer .. content)
  end
  return answer
end

rules[PURCHASE], rules[RESERVE] = take, take

-- The live hold of a token and its deadline; or nil, and the row with which it ended.
local function find_hold(token)
  local record = find_kept(token)
  if deadlines[token] == nil then
    load_deadlines({token})
  end
  local at = deadlines[token]
  if not record then
    return nil, row(FAILED, REASON.hold_not_found)
  elseif not at then
    return nil, kind_of(record) == HOLD and bare(EXPIRED) or record
  end
  local hold = unpack_hold(record)
  if at > now_s then
    return hold, at
  end
  give_back('expired', hold)
  set_deadline(token, false)
  return nil, bare(EXPIRED)
end

-- {kind, token, id}
rules[CONFIRM] = function(request)
  local token, id = request[2], request[3]
  local named = '/' .. token -- no purchase reads like that: it begins with a quotation mark
  local first = id ~= '' and seen(id, named)
  if first then
    return first
  end
  local hold, ended = find_hold(token)
  if not hold then
    return kind_of(ended) == FAILED and ended or again(ended)
  end
  held = held - hold[3]
  change('confirmed', hold[2], hold[3], hold[4], id ~= '' and string.sub(id, 2) or hold[5], hold[6], 0)
  local answer = sell(hold[2], hold[3], hold[4])
  set_deadline(token, false)
  keep(token, answer)
  if id ~= '' then
    keep(id, answer .. named)
  end
  return answer
end

-- What CANCEL and EXTEND say of a hold that ended.
local function tell(ended)
  local kind = kind_of(ended)
  if kind == SUCCESS then
    return row(FAILED, REASON.already_confirmed)
  end
  return kind == FAILED and ended or again(ended)
end

-- {kind, token}
rules[CANCEL] = function(request)
  local token = request[2]
  local hold, ended = find_hold(token)
  if not hold then
    return tell(ended)
  end
  give_back('cancelled', hold)
  set_deadline(token, false)
  local answer = row(CANCELLED, stock, version)
  keep(token, answer)
  return answer
end

-- {kind, token, hold seconds}
rules[EXTEND] = function(request)
  local token = request[2]
  local hold, at = find_hold(token)
  if not hold then
    return tell(at)
  end
  local seconds = request[3] == 0 and hold_s or request[3]
  local expires_at = math.min(from_s + seconds, hold[7] + math.max(hold_total_s, hold_s))
  if expires_at > at then
    at = expires_at
    set_deadline(token, at)
    change('extended', hold[2], hold[3], hold[4], '', hold[6], at)
  end
  return row(HELD, token, at, stock, version, hold[4])
end

rules[SWEEP] = function()
  return row(SWEPT, more_due)
end

-- The version of the last change: none while the ledger has not begun.
local function last_version()
  return (begun or #changes > 0) and version or 0
end

rules[STATUS] = function()
  return row(OK, stock, sold, held, where, last_version())
end
