-- The rules for the operator's requests. A block of their own: a function in Lua may have 200 local names.

do
  -- {kind, quantity}
  rules[RESTOCK] = function(request)
    local quantity = request[2]
    if stock + sold + held + quantity > (items and ITEMS_MAX or STOCK_MAX) then
      return row(FAILED, REASON.stock_too_large)
    end
    stock, restocked, stock_restocked = stock + quantity, restocked + quantity, true
    items = items and items + quantity
    change('restocked', '', quantity, 0, '', 0, 0)
    return row(CHANGED, stock, version, false)
  end

  -- What the ledger says of a sale: {user, quantity, item, at}; nil when that version is none. Whether it is one of those
  -- that the ledger does not tell of any more is the second value.
  local function find_order(order_version)
    local written = changes[order_version - (version - #changes)] -- in this batch
    if written then
      local kind, _, user, quantity, item = unpack(cjson.decode(written))
      return (kind == 'sold' or kind == 'confirmed') and {user, quantity, item or 0, now_ms}
    end
    local found = redis.call('XREVRANGE', KEYS[5], order_version .. '-0', '-', 'COUNT', 1)[1]
    if not found then
      return nil, redis.call('HEXISTS', KEYS[4], 'checkpoint') == 1
    end
    local next_version, message = tonumber(string.match(found[1], '^%d+')), found[2]
    if message[1] ~= 'at' or message[3] ~= 'epoch' then
      defect = 'its ledger holds what somebody else has written'
      return nil
    end
    for i = 5, #message, 2 do
      local value, index = cjson.decode(message[i + 1]), order_version - next_version + 1
      if message[i] == 'sales' then
        local user = value[2][index]
        return user and {user, 1, 0, tonumber(message[2])}
      elseif value[index] then
        local kind, _, user, quantity, item = unpack(value[index])
        return (kind == 'sold' or kind == 'confirmed') and {user, quantity, item or 0, tonumber(message[2])}
      end
      next_version = next_version + #value
    end
  end

  -- {kind, version, time in ms, epoch}, then user, quantity and item, if they are known
  rules[REFUND] = function(request)
    local order_version, order, trimmed = request[2], nil, false
    if request[4] == (epoch or new_epoch()) then
      order, trimmed = find_order(order_version)
    end
    if trimmed and request[5] then
      order = {request[5], request[6], request[7], request[3]}
    end
    if not order or order[4] ~= request[3] then
      return row(FAILED, REASON.order_not_found)
    end
    if refunds[order_version] == nil then
      if redis.call('HLEN', KEYS[11]) + #refund_values / 2 ~= refunded then
        error('its refunds are not all there', 0)
      end
      refunds[order_version] = redis.call('HGET', KEYS[11], order_version)
    end
    if refunds[order_version] then
      return row(CHANGED, stock, version, true)
    end
    stock, sold = stock + order[2], sold - order[2]
    count_units(order[1], -order[2])
    set_taken(order[3], false)
    buyers[#buyers + 1] = {order[1]}
    change('refunded', order[1], order[2], order[3], '', order_version, 0)
    refunds[order_version], refunded = version, refunded + 1
    refund_values[#refund_values + 1], refund_values[#refund_values + 2] = order_version, version
    return row(CHANGED, stock, version, false)
  end

  local SWITCHES = {
    [PAUSE] = {'paused', 'paused'}, [RESUME] = {'open', 'resumed'}, [CLOSE] = {'closed', 'closed'},
  }

  -- {kind}
  local function switch(request)
    local wanted, kind = SWITCHES[request[1]][1], SWITCHES[request[1]][2]
    if state == 'closed' and wanted ~= 'closed' then
      return row(FAILED, REASON.sale_is_closed)
    elseif state == wanted then
      return row(CHANGED, stock, last_version(), true)
    end
    state, switched = wanted, true
    where = standing()
    change(kind, '', 0, 0, '', 0, 0)
    return row(CHANGED, stock, version, false)
  end

  rules[PAUSE], rules[RESUME], rules[CLOSE] = switch, switch, switch
end
