-- Policies: what a subject's plans add up to, compiled by the client, named by the first 8 bytes of
-- the SHA-1 of its bytes. A parsed policy is a pure function of those bytes, so a function library
-- keeps it for the next call; where nothing outlives a call it is parsed anew.
--
-- Bytes: msgpack [2, horizon ms, zones, plans, limits], and where limits have an automatic amount, these
--   zones   [name, packed transitions], ...
--   plans   [group, id, definition hash, private], ...
--   limits  [1, name, limit, overage, rollover, carry_debt, unit, every, mode, anchor, zone, bill, rates,
--            warn_at, warn_below]                                                        pool
--           [2 fixed | 3 sliding | 4 token, name, limit, burst, per ms, rates]
--           [5, name]                                                                    flag
--           [0, name, limit, rates]                                                      slots
--   autos   [position among the limits, amount, ...]: what verifying an API key charges unasked
--   -2^53 stands for "no limit"; zone 0 is UTC; bill: 0 none, 1 use, 2 overage; rates is [cost, factor, ...],
--   empty for its own name; warn_at counts in millionths, warn_below in units, each ascending.
-- @gives policy split_names

local COLUMNS, RATES = { [0] = 4, 15, 6, 6, 6, 2 }, { [0] = 4, 13, 6, 6, 6, 2 }
local MOST_WARNINGS = 14 -- a state has that many bits for them
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

-- Row i as a limit whose state begins at byte `at`. One table of its final size costs less than one that
-- grows, and a script parses with every call.
local function parse_limit(i, row, zones, at)
  local kind = row[1]
  if kind == POOL then
    local zone = zones[row[11]]
    return setmetatable({
      kind = kind, name = row[2], limit = row[3], index = i, offset = at, size = SIZES[kind], rates = row[13],
      bill = row[12], warn_at = row[14], warn_below = row[15], indexed = row[7] > 0 or row[12] > 0,
      overage = row[4], rollover = row[5], carry_debt = row[6] == 1,
      unit = row[7], every = row[8], mode = row[9], anchor = row[10], zone = zone, zone_name = zone and zone.name,
    }, BEHAVIOUR[kind])
  elseif kind == FLAG then
    return { kind = kind, name = row[2], limit = NONE, index = i, rates = {} }
  elseif kind == SLOTS then
    return setmetatable({
      kind = kind, name = row[2], limit = row[3], index = i, offset = at, size = SIZES[kind], rates = row[4],
      overage = 0,
    }, BEHAVIOUR[kind])
  end
  local L = {
    kind = kind, name = row[2], limit = row[3], index = i, offset = at, size = SIZES[kind], rates = row[6],
    overage = 0, burst = row[4], per = row[5], capacity = 0, tick = 1, period = 1,
  }
  dimension(L)
  return setmetatable(L, BEHAVIOUR[kind])
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

local function ascending(list, most)
  local before = 0
  for i = 1, #list do
    if not is_whole(list[i], before + 1, most) then
      return false
    end
    before = list[i]
  end
  return type(list) == "table"
end

-- Whether a row says what its kind needs, so that nothing later stumbles over it: a boundary that
-- never moves on, say, would keep the server busy for ever.
local function valid_row(row, zone_count)
  local kind, columns = row[1], COLUMNS[row[1]]
  if not columns or #row ~= columns or #row[2] > 64 or not find(row[2], "^[%w_.-]+$") then
    return false
  end
  for i = 3, RATES[kind] - 1 do
    local n = row[i]
    if type(n) ~= "number" or n % 1 ~= 0 or n < NONE or n > -NONE then
      return false
    end
  end
  if kind == POOL then
    local endless = row[7] == 0
    if row[3] < 0 and row[3] ~= NONE or row[4] < 0 and row[4] ~= NONE or row[5] < 0 then
      return false
    elseif row[7] < 0 or row[7] > 3 or row[9] < 0 or row[9] > 4 or row[11] < 0 or row[11] > zone_count then
      return false
    elseif row[8] < (endless and 0 or 1) or endless and row[9] > 0 then
      return false
    elseif row[12] < 0 or row[12] > 2 or not (ascending(row[14], 1000000) and ascending(row[15], MAX_AMOUNT)) then
      return false
    elseif #row[14] + #row[15] > MOST_WARNINGS then
      return false
    end
  elseif kind == SLOTS then
    if not is_whole(row[3], 0, MAX_RATE) then
      return false
    end
  elseif kind < FLAG then
    if row[3] < 0 or max(row[3], row[4]) > MAX_RATE or row[4] < 0 and row[4] ~= NONE then
      return false
    elseif row[5] < 1 or row[5] > 366 * DAY then
      return false
    end
  end
  local rates = kind == FLAG and {} or row[RATES[kind]]
  for r = 1, #rates, 2 do
    local n = rates[r + 1]
    if type(rates[r]) ~= "string" or type(n) ~= "number" or n % 1 ~= 0 or n < 1 or n > MAX_COUNTER then
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
  local autos = data[6] or {}
  for a = 1, #autos, 2 do
    local row = data[5][autos[a]]
    if not row or row[1] == FLAG or row[1] == SLOTS or not is_whole(autos[a + 1], 1, MAX_AMOUNT) then
      return false
    end
  end
  return type(data[5]) == "table" and type(autos) == "table" and (not data[6] or #autos > 0)
end

local function parse(fp, blob)
  local readable, data = true, opened[blob]
  if not data then
    if type(blob) ~= "string" or sub(sha1hex(blob), 1, 16) ~= hex(fp) then
      bad("policies: bytes that do not hash to the name they are given under")
    end
    readable, data = pcall(munpack, blob)
  end
  if not readable or type(data) ~= "table" or data[1] ~= 2 then
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
  local parsed = {
    fp = fp, groups = {}, limits = {}, names = {}, shapes = {}, shape_count = 0,
    layout = "", held = nil, tail = 0, forgettable = nil, billed = false, plan = "",
  }
  for _, plan in ipairs(data[4]) do
    parsed.groups[plan[1]] = true
    if plan[1] == "base" or parsed.plan == "" then
      parsed.plan = plan[2] -- what events name
    end
    parsed.held = true
  end
  local at = HEADER + 1
  for i, row in ipairs(data[5]) do
    local L = parse_limit(i, row, zones, at)
    if L.kind < FLAG then
      parsed.layout = parsed.layout .. LETTERS[L.kind]
      at = at + L.size
    end
    parsed.limits[i], parsed.names[L.name] = L, L
    parsed.billed = parsed.billed or L.kind == POOL and L.bill > 0
  end
  for a = 1, #(data[6] or ""), 2 do
    parsed.limits[data[6][a]].auto = data[6][a + 1]
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

-- How the cost names that a limit charges reach it: {position, factor} each; nil if none does. `first`: where
-- a name stands first, `again`: where the name of a position stands next.
local function reaching(L, first, again, reached)
  local rates, list = L.rates, nil
  local own = #rates == 0
  for r = 1, own and 1 or #rates, 2 do
    local j = first[own and L.name or rates[r]]
    while j do
      list = list or {}
      list[#list + 1] = { j, own and 1 or rates[r + 1] }
      reached[j] = true
      j = again[j]
    end
  end
  return list
end

-- What a set of cost names means under a policy: which limits are charged, in record order, by which
-- amounts at which factors. "+" at its end stands for the automatic amounts of limits that no other name reaches.
local function make_shape(parsed, text)
  local every, auto = text == "*", text == "+" or sub(text, -2) == ",+"
  local names = (every or text == "+") and {} or split_names(auto and sub(text, 1, -3) or text)
  local reached, first, again = {}, {}, {}
  for j = #names, 1, -1 do
    again[j], first[names[j]] = first[names[j]], j
  end
  local last = (every or auto) and #names + 1 or #names
  reached[#names + 1] = auto
  local shape = {
    names = last, reached = reached, whole = true, simple = true, heads = {},
    indexed = false, -- whether it reaches a pool that resets or is billed
    nameless = #names == 0, -- only automatic amounts, or every limit
  }
  local described, count, at = {}, 0, HEADER + 1
  for i, L in ipairs(parsed.limits) do
    local list = every and { { 1, 1 } } or reaching(L, first, again, reached)
    if auto and not list and L.auto then
      list = { { last, L.auto } }
    end
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
      shape.indexed = shape.indexed or L.kind == POOL and L.indexed
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
  for j = 1, #names do
    shape.whole = shape.whole and reached[j] == true
  end
  shape.count = count
  shape.described = concat(described)
  return shape
end

-- The same with pools of limit 0 besides, which only grants fill. Their states follow those of the policy, behind
-- a byte that says how many they are.
function policy.implying(parsed, names)
  local together = concat(names, ",")
  local known = parsed.implying and parsed.implying[together]
  if known then
    return known
  end
  local limits, by_name, at = {}, {}, parsed.tail + 1
  for i, L in ipairs(parsed.limits) do
    limits[i], by_name[L.name] = L, L
  end
  for i, name in ipairs(names) do
    assert(type(name) == "string" and #name <= 64 and find(name, "^[%w_.-]+$"))
    local L = parse_limit(#parsed.limits + i, { POOL, name, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {}, {}, {} }, {}, at)
    L.implied, L.indexed, L.auto = true, true, name == "credits" and 1 or nil
    at = at + L.size
    limits[L.index], by_name[name] = L, L
  end
  known = {
    fp = parsed.fp, groups = parsed.groups, limits = limits, names = by_name, shapes = {}, shape_count = 0,
    layout = parsed.layout .. LETTERS[POOL]:rep(#names), held = true, tail = at, forgettable = nil,
    billed = parsed.billed, plan = parsed.plan, base = parsed, implied = names,
  }
  if not parsed.implying or parsed.implying_count >= 16 then
    parsed.implying, parsed.implying_count = {}, 0
  end
  parsed.implying[together], parsed.implying_count = known, parsed.implying_count + 1
  return known
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
    shape.key = text
    if parsed.shape_count >= 64 then
      parsed.shapes, parsed.shape_count = {}, 0
    end
    parsed.shapes[text] = shape
    parsed.shape_count = parsed.shape_count + 1
  end
  return shape
end
