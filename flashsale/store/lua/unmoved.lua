-- How many changes of a product are not in the database yet, if there is one: init and reset would lose them. -1 when
-- the database knows more of it than this store.
local function unmoved()
  local version, moved = 0, 0
  if redis.call('EXISTS', KEYS[14]) == 1 and redis.call('TYPE', KEYS[4]).ok == 'hash' then
    local sale = redis.call('HMGET', KEYS[4], 'version', 'stored', 'moved')
    -- what a relay has published counts where nobody says what is in the database, which may have been set back since
    version, moved = tonumber(sale[1] or 0) or 0, tonumber(sale[2] or sale[3] or 0) or 0
  end
  if redis.pcall('HGET', KEYS[4], 'state') == 'frozen' then
    return -1
  end
  return math.max(version - moved, 0)
end
