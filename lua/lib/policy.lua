-- Policies: what a subject's plans add up to, compiled by the client, named by the first 8 bytes of
-- the SHA-1 of its bytes. A parsed policy is a pure function of those bytes, so a function library
-- keeps it for the next call; where nothing outlives a call it is parsed anew.
--
-- Bytes: msgpack [1, horizon ms, zones, plans, limits]
--   zones   [name, packed transitions], ...
--   plans   [group, id, definition hash, private], ...
--   limits  [1, name, limit, overage, rollover, carry_debt, unit, every, mode, anchor, zone, rates]  pool
--           [2 fixed | 3 sliding | 4 token, name, limit, burst, per ms, rates]
--           [5, name]                                                                    flag
--           [0, name, limit, rates]                                                      slots
--   -2^53 stands for "no limit"; zone 0 is UTC; rates is [cost, factor, ...], empty for its own name.

local SLOTS, POOL, FLAG = 0, 1, 5
local HEADER = 20
local SIZES = { [0] = SLOTS_SIZE, POOL_SIZE, FIXED_SIZE, SLIDING_SIZE, TOKEN_SIZE }
local COLUMNS = { [0] = 4, 12, 6, 6, 6, 2 }
local LETTERS = { [0] = "l", "p", "f", "s", "t", "g" }
-- A limit finds what its kind does (load, charge, ...) behind its own fields.
local BEHAVIOUR = {
  [0] = { __index = slots }, { __index = pool }, { __index = fixed }, { __index = sliding }, { __index = token },
}

local policy = {}
local memo, memo_size = {}, 0 -- at most 256 policies: the collector walks what is kept

-- Sets what depends on limit and burst.
local function dimension(L)
  if L.kind > POOL and L.kind < FLAG then
    L.capacity = L.burst == NONE and L.limit or L.burst
    L.tick = tick_ms(max(L.limit, L.capacity), L.per)
    L.period = ceil_div(L.per, L.tick)
  end
end

local function parse_limit(row, zones)
  local L = { kind = row[1], name = row[2], limit = row[3] }
  if L.kind == POOL then
    L.overage, L.rollover, L.carry_debt = row[4], row[5], row[6] == 1
    L.unit, L.every, L.mode, L.anchor = row[7], row[8], row[9], row[10]
    L.zone = zones[row[11]]
    L.zone_name = L.zone and L.zone.name
    L.rates = row[12]
  elseif L.kind == SLOTS then
    L.rates, L.overage = row[4], 0
  elseif L.kind < FLAG then
    L.burst, L.per, L.rates = row[4], row[5], row[6]
    L.overage = 0
    dimension(L)
  else
    L.limit, L.rates = NONE, {}
  end
  return L.kind < FLAG and setmetatable(L, BEHAVIOUR[L.kind]) or L
end

-- How long after its last charge a record of nothing but buckets can still differ from an unseen
-- subject's, in ms; nil where the record has to stay.
local function forgettable_after(limits)
  local longest
  for _, L in ipairs(limits) do
    if L.kind <= POOL or L.kind == FLAG or L.limit == 0 then
      return nil
    end
    local full = 2 * L.per + 2 * L.tick
    if L.kind == 4 then
      full = ceil(L.capacity * L.per / L.limit) + 2 * L.tick
    end
    longest = max(longest or 0, full)
  end
  return longest and longest <= CENTURY and longest or nil
end

local function is_whole(n, low, high)
  return type(n) == "number" and n % 1 == 0 and n >= low and n <= high
end

-- Whether a row says what its kind needs, so that nothing later stumbles over it: a boundary that
-- never moves on, say, would keep the server busy for ever.
local function valid_row(row, zone_count)
  local kind, columns = row[1], COLUMNS[row[1]]
  if not columns or #row ~= columns or #row[2] > 64 or not find(row[2], "^[%w_.-]+$") then
    return false
  end
  for i = 3, columns - 1 do
    if not is_whole(row[i], NONE, -NONE) then
      return false
    end
  end
  if kind == POOL then
    local endless = row[7] == 0
    if row[3] < 0 and row[3] ~= NONE or row[4] < 0 and row[4] ~= NONE or row[5] < 0 then
      return false
    elseif not is_whole(row[7], 0, 3) or not is_whole(row[9], 0, 4) or not is_whole(row[11], 0, zone_count) then
      return false
    elseif row[8] < (endless and 0 or 1) or endless and row[9] > 0 then
      return false
    end
  elseif kind == SLOTS then
    if not is_whole(row[3], 0, MAX_RATE) then
      return false
    end
  elseif kind < FLAG then
    if row[3] < 0 or max(row[3], row[4]) > MAX_RATE or row[4] < 0 and row[4] ~= NONE then
      return false
    elseif not is_whole(row[5], 1, 366 * DAY) then
      return false
    end
  end
  local rates = columns > 2 and row[columns] or {}
  for r = 1, #rates, 2 do
    if type(rates[r]) ~= "string" or not is_whole(rates[r + 1], 1, MAX_COUNTER) then
      return false
    end
  end
  return type(rates) == "table"
end

local function valid(data)
  if not is_whole(data[2], 0, -NONE) or #data[5] > 64 then
    return false
  end
  local names = {}
  for _, zone in ipairs(data[3]) do
    if type(zone[1]) ~= "string" or type(zone[2]) ~= "string" or #zone[2] < 10 or #zone[2] % 10 > 0 then
      return false
    end
  end
  for _, plan in ipairs(data[4]) do
    if type(plan) ~= "table" or type(plan[1]) ~= "string" then
      return false
    end
  end
  for _, row in ipairs(data[5]) do
    if not valid_row(row, #data[3]) or names[row[2]] then
      return false
    end
    names[row[2]] = true
  end
  return type(data[5]) == "table"
end

local function parse(fp, blob)
  if type(blob) ~= "string" or sub(sha1hex(blob), 1, 16) ~= hex(fp) then
    bad("policies: bytes that do not hash to the name they are given under")
  end
  local readable, data = pcall(munpack, blob)
  if not readable or type(data) ~= "table" or data[1] ~= 1 then
    bad("policies: bytes of a layout that is not known here")
  end
  local checked, good = pcall(valid, data)
  if not (checked and good) then
    bad("policies: bytes that are not a policy")
  end
  local zones = {}
  for i, zone in ipairs(data[3]) do
    zones[i] = { name = zone[1], list = zone[2], horizon = data[2], policy = fp }
  end
  local parsed = { fp = fp, groups = {}, limits = {}, names = {}, reach = {}, shapes = {}, shape_count = 0 }
  parsed.layout = ""
  for _, plan in ipairs(data[4]) do
    parsed.groups[plan[1]] = true
    parsed.held = true
  end
  local at = HEADER + 1
  for i, row in ipairs(data[5]) do
    local L = parse_limit(row, zones)
    L.index = i
    if L.kind < FLAG then
      L.offset, L.size = at, SIZES[L.kind]
      parsed.layout = parsed.layout .. LETTERS[L.kind]
      at = at + L.size
    end
    parsed.limits[i], parsed.names[L.name] = L, L
    local rates = L.rates
    if #rates == 0 then
      rates = { L.name, 1 }
    end
    for r = 1, #rates, 2 do
      local list = parsed.reach[rates[r]]
      if not list then
        list = {}
        parsed.reach[rates[r]] = list
      end
      list[#list + 1] = { i, rates[r + 1] }
    end
  end
  parsed.tail = at -- where the variable part of a record begins
  parsed.forgettable = #parsed.limits > 0 and forgettable_after(parsed.limits) or nil
  return parsed
end

-- The policy named fp: known already, else from the bytes that came with the call, else nil.
function policy.get(fp, blobs)
  local known = memo[fp]
  if known then
    return known
  end
  local blob = blobs and blobs[fp]
  if not blob then
    return nil
  end
  known = parse(fp, blob)
  if memo_size >= 256 then
    memo, memo_size = {}, 0
  end
  memo[fp], memo_size = known, memo_size + 1
  return known
end

-- A limit as an override {l = limit, v = overage, b = burst} makes it.
function policy.overridden(L, fields)
  local changed = {}
  for k, v in pairs(L) do
    changed[k] = v
  end
  setmetatable(changed, BEHAVIOUR[L.kind])
  changed.limit = fields.l or L.limit
  if L.kind == POOL then
    changed.overage = fields.v or L.overage
  else
    -- An override that waited for its limit may have been meant for a pool.
    changed.burst = L.kind == 4 and fields.b or L.burst
    changed.limit = changed.limit == NONE and L.limit or min(changed.limit, MAX_RATE)
    dimension(changed)
  end
  return changed
end

-- Splits "tokens,images"; every name is checked.
local function split_names(text)
  local names = {}
  for name in (text .. ","):gmatch("([^,]*),") do
    if #name > 64 or not find(name, "^[%w_.-]+$") then
      bad("costs: a name is 1 to 64 of A-Z a-z 0-9 _ . -")
    end
    names[#names + 1] = name
  end
  if #names > 64 then
    bad("costs: at most 64 names")
  end
  return names
end

-- What a set of cost names means under a policy: which limits are charged, in record order, by which
-- amounts at which factors.
local function make_shape(parsed, text)
  local every = text == "*"
  local names = every and {} or split_names(text)
  local terms, reached = {}, {}
  if every then
    for i = 1, #parsed.limits do
      terms[i] = { { 1, 1 } }
    end
  end
  for j, name in ipairs(names) do
    for _, pair in ipairs(parsed.reach[name] or {}) do
      reached[j] = true
      terms[pair[1]] = terms[pair[1]] or {}
      terms[pair[1]][#terms[pair[1]] + 1] = { j, pair[2] }
    end
  end
  local shape = { names = every and 1 or #names, reached = reached, whole = true, simple = true, heads = {} }
  for j = 1, #names do
    shape.whole = shape.whole and reached[j] == true
  end
  local described, count, at = {}, 0, HEADER + 1
  for i, L in ipairs(parsed.limits) do
    local list = terms[i]
    if list then
      count = count + 1
      local target = { index = i, limit = L, term = list[1][1], factor = list[1][2], first = 0 }
      if #list > 1 then
        target.terms = list
      end
      for _, pair in ipairs(list) do
        if pair[1] == 1 and not every then
          target.first = target.first + pair[2]
        end
      end
      shape.simple = shape.simple and L.kind < FLAG and L.kind > SLOTS and #list == 1
      if L.kind < FLAG then
        if L.offset > at then
          target.gap = at -- where the states of limits in between begin
        end
        at = L.offset + L.size
      end
      shape[count] = target
      described[count] = LETTERS[L.kind] .. L.name .. "\n"
    end
  end
  shape.count = count
  shape.described = concat(described)
  return shape
end

-- What an answer says of a level before its figures.
function policy.head(shape, level)
  local head = shape.heads[level]
  if not head then
    head = spack("<BBI2", level, shape.count, #shape.described) .. shape.described
    shape.heads[level] = head
  end
  return head
end

function policy.shape(parsed, text)
  local shape = parsed.shapes[text]
  if not shape then
    shape = make_shape(parsed, text)
    if parsed.shape_count >= 64 then
      parsed.shapes, parsed.shape_count = {}, 0
    end
    parsed.shapes[text] = shape
    parsed.shape_count = parsed.shape_count + 1
  end
  return shape
end
