-- Decides one batch for one product: the group commit's one round trip. The decision script is these files, loaded as
-- one: frame.lua reads the product, ledger.lua knows how changes are written, plain.lua is the short way for a crowd.
-- For all else known.lua reads what is needed, holds.lua returns what has expired, rules.lua and operator.lua are the
-- rules, decide.lua goes by them request by request, and apply.lua writes what was decided.
-- The rules themselves are in memory.py, in plain Python; what is here must do the same.
--
-- KEYS  of the product: 1 stock   2 buyers   3 sessions   4 sale   5 orders   6 users   7 deadlines   8 items
--       9 requests   10 requests_before   11 refunds; of all products: 12 products   13 products_due (store/keys.py)
-- ARGV  1 session      who sends: one server worker, one command of an operator
--       2 sequence     of the batch within its session; the same when it is sent again
--       3 fenced       '1': remember the sequence even when nothing changes
--       4 product id
--       5 count        of requests
--       6 users        JSON array of `count` user ids, when each request is the purchase of one unit and nothing else
--       7 requests     msgpack array of `count` requests otherwise (store/encoding.py)
--       8 backlog max  how many changes may wait for the database; 0 for any number
--       9 movers       the key that is there once the orders of this store go into a database
-- Returns {sequence, code, …}; what follows depends on the code:
--   0 decided: stock before, how many of the purchases succeed (the first; the rest are sold out), version before,
--     time in Unix ms, epoch of the product
--   1 no such product   2 overtaken by a later batch of its session
--   3 defective: what is wrong with the keys, nothing was changed
--   4 refused, all of them: open, paused, closed or not_open; when it opens
--   5 decided: msgpack array of a row for each request, epoch of the product (store/encoding.py)
--
-- A script that fails half-way is not rolled back: everything is read, checked and decided before the first write, and
-- the first write is one that Redis refuses when it is out of memory, may not write, or has a key of another type.

local DECIDED, NOT_FOUND, OVERTAKEN, DEFECTIVE, REFUSED, ROWS = 0, 1, 2, 3, 4, 5
local STOCK_MAX = 99999999999999 -- Lua writes numbers with 14 digits
local ITEMS_MAX = 10000000
local HOLD_S, HOLD_TOTAL_S = 900, 3600 -- of a sale whose stock was set by hand
local REQUESTS_KEPT_S = 86400
local SWEEP_COUNT_MAX, LAZY_COUNT_MAX = 256, 4096
local SESSIONS_KEPT = 64
local SESSION_AGE_MAX_S = 86400
local CHANNEL = 'flashsale_events'
local ASK_FROM = 8 -- changes in a batch: for fewer, publishing costs no more than asking who listens
local CHUNK = 1000 -- unpack() puts its values on the C stack, which takes 8,000

local session, sequence, fenced = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local product, count = ARGV[4], tonumber(ARGV[5])
local plain = ARGV[7] == ''
local backlog_max = tonumber(ARGV[8] or 0)

local function defective(reason)
  return {sequence, DEFECTIVE, reason}
end

-- Has the batch been here before?

local record = redis.call('HGET', KEYS[3], session)
if record then
  local last = tonumber(string.match(record, '^%d+'))
  if not last then
    return defective('its sessions are not what was written')
  elseif sequence == last then
    local readable, reply = pcall(cmsgpack.unpack, redis.call('HGET', KEYS[3], session .. ':reply'))
    if not readable or type(reply) ~= 'table' or reply[1] ~= sequence then
      return defective('its sessions are not what was written')
    end
    return reply
  elseif sequence < last then
    return {sequence, OVERTAKEN}
  end
end

-- The product

local raw = redis.call('GET', KEYS[1])
local sale = redis.call('HMGET', KEYS[4], 'epoch', 'version', 'sold', 'held', 'due', 'state', 'limit', 'opens_at',
  'closes_at', 'items')
local epoch = sale[1]
local stock, version, sold, held = tonumber(raw or '0'), tonumber(sale[2] or 1), tonumber(sale[3] or 0), tonumber(sale[4] or 0)
local due, state = tonumber(sale[5] or 0), sale[6] or 'open' -- due: no hold expires earlier; 0 when there is none
local limit, opens_at, closes_at = tonumber(sale[7] or 0), tonumber(sale[8] or 0), tonumber(sale[9] or 0)
local items = sale[10] and tonumber(sale[10]) -- how many there are; false when they are not numbered
local begun = epoch -- else the stock was set by hand: the ledger begins with its first change, as version 1

if not (version and sold and held and due and limit and opens_at and closes_at) or items == nil
    or not begun ~= not sale[2] or not begun ~= not sale[3] then
  return defective('its counters are not what was written')
elseif state == 'frozen' then
  return defective('the database knows more of it than this store: rebuild it with flashsale recover')
end
if raw then
  if not (raw == '0' or string.match(raw, '^-?[1-9]%d*$')) or stock > STOCK_MAX then
    return defective('its stock is not a number of units')
  end
  if not begun then
    sold = redis.call('LLEN', KEYS[2])
    if redis.call('EXISTS', KEYS[5]) == 1 then
      return defective('it has a ledger but no counters')
    end
  end
  stock = math.max(stock, 0)
  if not (sold >= 0 and held >= 0 and stock + sold + held <= STOCK_MAX) then
    return defective('its units are too many or too few')
  end
elseif begun then
  return defective('its stock is gone')
end

local stock_before, sold_before = stock, sold

-- The time, asked for when it matters

local now_s, now_ms
local function read_clock()
  if not now_s then
    local time = redis.call('TIME')
    now_s = tonumber(time[1])
    now_ms = now_s * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
end

local function standing()
  if state == 'closed' or (closes_at > 0 and now_s >= closes_at) then
    return 'closed'
  elseif state == 'paused' then
    return 'paused'
  end
  return opens_at > 0 and now_s < opens_at and 'not_open' or 'open'
end

-- A crowd that comes too late or too early: one answer for all, which costs nothing but what was read up to here.

if due > 0 or opens_at > 0 or closes_at > 0 then
  read_clock()
end

local refusal
if raw and plain and (due == 0 or due > now_s) then
  local where = standing()
  if where ~= 'open' then
    refusal = {sequence, REFUSED, where, opens_at}
  elseif stock == 0 then
    refusal = {sequence, DECIDED, 0, 0, 0, 0, ''}
  end
  if refusal and not fenced then
    return refusal
  end
end
