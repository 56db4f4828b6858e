-- Decides the batch.

local rows = {}
local function decide()
  -- every batch begins by returning expired holds to stock
  more_due = due > 0 and due <= now_s and sweep(SWEEP_COUNT_MAX, math.huge) == SWEEP_COUNT_MAX
  -- read what the requests name, in few calls
  local names, tokens, buying = {}, {}, {}
  for i = 1, count do
    local request = requests[i]
    local kind = request[1]
    if kind <= RESERVE then
      if request[4] ~= '' then
        names[#names + 1] = request[4]
      end
      if limit > 0 and stock + held > 0 then
        buying[#buying + 1] = request[2]
      end
    elseif kind <= EXTEND then
      tokens[#tokens + 1], names[#names + 1] = request[2], request[2]
      if kind == CONFIRM and request[3] ~= '' then
        names[#names + 1] = request[3]
      end
    end
  end
  load_kept(names)
  load_deadlines(tokens)
  load('HMGET', KEYS[6], buying, users, as_units)
  for i = 1, count do
    rows[i] = rules[requests[i][1]](requests[i])
  end
end

-- Nothing is written yet: whatever fails here, at keys that somebody else has written, has changed nothing.
local decided, trouble = pcall(decide)
if not decided then
  return type(trouble) == 'table' and trouble or defective(tostring(trouble))
end
local reply = {sequence, ROWS, (count < 16 and string.char(144 + count) or '\221' .. struct.pack('>I4', count))
  .. table.concat(rows)}
