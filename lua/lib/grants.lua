-- Grants: credits beside a pool's own allowance. Each has a start, an end and a place in the burn order, and
-- belongs to its record: what plans come and go does not touch it.
--
-- In the variable part they are `k`, rows {id, pool, amount, left, held, lost, starts, expires, priority, age,
-- source, voided}; `age` is the instant it was given. Of the amount, `left` can be spent, `held` is with open holds,
-- `lost` was void or came back too late; the rest is consumed. A row stays while there is something left or held;
-- without, while it may get something back.
--
-- A pool that no plan of the record includes is there all the same, with limit 0, as long as a grant is for it.
-- Such pools follow the policy's states: their number (1 byte), then a state each; flag 128, names in `i`.
--
-- For the plain case there is a digest of this in front of the variable part (flag 16): number of pools with
-- grants 1, and per pool: its index 1 (+ 128 where some are live), where the next charge goes 1 (0: the
-- allowance, else the place of a row), until when that holds 6, what is left there 7 (of an allowance: 0), what
-- all other live grants have 7. While a row stands there, what it has left is to be read here.
--
-- level.grants: the rows as tables, in order of age.
-- @gives grants

local MOST_GRANTS, MOST_SPENT = 64, 32
local ALLOWANCE = 50 -- the priority of a period's own allowance
local DIGEST = "<BBI6I7I7"

local grants = {}

local function is_live(g, now)
  return g.starts <= now and now < g.expires and not g.voided
end

-- Whether one id comes before another, byte by byte: `<` goes by the locale of the server.
local function precedes(id, other)
  for i = 1, min(#id, #other) do
    local a, b = byte(id, i), byte(other, i)
    if a ~= b then
      return a < b
    end
  end
  return #id < #other
end

-- Whether g burns before the one that has come so far.
local function before(g, other)
  if g.priority ~= other.priority then
    return g.priority < other.priority
  elseif g.expires ~= other.expires then
    return g.expires < other.expires
  elseif g.age ~= other.age then
    return g.age < other.age
  end
  return precedes(g.id, other.id)
end

-- Rows of one pool that are live, in burn order; nil if there is none.
local function live_of(list, name, now)
  local found
  for _, g in ipairs(list) do
    if g.pool == name and is_live(g, now) then
      found = found or {}
      local at = #found + 1
      while at > 1 and before(g, found[at - 1]) do
        found[at] = found[at - 1]
        at = at - 1
      end
      found[at] = g
    end
  end
  return found
end

-- Puts the live grants of a pool into its hand, before it is loaded.
function grants.arm(level, L, now, s)
  s.grants, s.taken, s.granted = nil, nil, 0
  if level.grants and L.kind == POOL then
    s.grants = live_of(level.grants, L.name, now)
    for _, g in ipairs(s.grants or {}) do
      s.granted = s.granted + g.left
    end
  end
end

-- Takes c from a pool's sources in burn order. `room`: what the allowance has. Returns what came from it, from
-- grants, and from nowhere; s.taken lists id ("" is the allowance) and amount of each source if a grant was one.
function grants.burn(c, room, s)
  local rest, own, drawn, taken = c, 0, 0, {}
  local function take_from(id, n)
    taken[#taken + 1], taken[#taken + 2] = id, n
    rest = rest - n
  end
  local waits = true -- the allowance has not had its turn
  for _, g in ipairs(s.grants) do
    if waits and (g.priority > ALLOWANCE or g.priority == ALLOWANCE and s.fin <= g.expires) then
      waits, own = false, min(rest, room)
      take_from("", own)
    end
    local n = min(rest, g.left)
    if n > 0 then
      g.left, drawn = g.left - n, drawn + n
      take_from(g.id, n)
    end
  end
  if waits then
    own = min(rest, room)
    take_from("", own)
  end
  s.granted = s.granted - drawn
  s.taken = drawn > 0 and taken or nil
  return own, drawn, rest
end

-- Gives up to c of what was drawn back to the live grants, last in the burn order first. Returns what came back.
function grants.refund(c, s)
  local rest = min(c, s.drawn)
  for i = #s.grants, 1, -1 do
    local g = s.grants[i]
    local n = min(rest, g.amount - g.left - g.held - g.lost)
    g.left, rest = g.left + n, rest - n
  end
  local back = min(c, s.drawn) - rest
  s.drawn, s.granted = s.drawn - back, s.granted + back
  return back
end

-- The first boundary (`first(need)`: the one for which `need` units suffice) at which c fits with the grants
-- that are live now and still are by then.
function grants.retry_at(c, s, first)
  local at
  local least = -1 -- grants that expire by then do not count
  while true do
    local granted = 0
    for _, g in ipairs(s.grants) do
      if g.expires > least then
        granted = granted + g.left
      end
    end
    at = first(c - granted)
    local again = false
    for _, g in ipairs(s.grants) do
      again = again or at ~= NONE and g.left > 0 and g.expires > least and g.expires <= at
    end
    if not again then
      return at
    end
    least = at
  end
end

local function find_row(level, id)
  for _, g in ipairs(level.grants or {}) do
    if g.id == id then
      return g
    end
  end
  return nil
end

-- What a hold has just taken from grants (see grants.burn) is held.
function grants.hold(level, taken)
  for i = 1, #taken, 2 do
    local g = taken[i] ~= "" and find_row(level, taken[i])
    if g then
      g.held = g.held + taken[i + 1]
    end
  end
end

-- The sources (as s.taken) of the first `units` of what was taken.
function grants.first(sources, units)
  local list = {}
  for i = 1, #sources, 2 do
    local n = min(units, sources[i + 1])
    if n > 0 then
      list[#list + 1], list[#list + 2] = sources[i], n
    end
    units = units - n
  end
  return list
end

-- Gives `back` units from `sources` (as s.taken), what was taken last first; what is `held` of the rest is consumed.
-- Nothing that is consumed comes back twice. Returns what goes back to grants, and what they had back already.
function grants.settle(level, sources, back, held, now)
  local drawn, twice = 0, 0
  for i = #sources - 1, 1, -2 do
    local id, n = sources[i], sources[i + 1]
    local y = min(back, n)
    back = back - y
    if id ~= "" then
      local g = find_row(level, id)
      if g then
        if held then
          g.held = g.held - n
        else
          local consumed = g.amount - g.left - g.held - g.lost
          twice = twice + max(0, y - consumed)
          y = min(y, consumed)
        end
        if g.voided or g.expires <= now then
          g.lost = g.lost + y
        else
          g.left = g.left + y
        end
      end
      drawn = drawn + y
    end
  end
  return drawn, twice
end

local function as_row(g)
  local void = g.voided and 1 or 0
  return { g.id, g.pool, g.amount, g.left, g.held, g.lost, g.starts, g.expires, g.priority, g.age, g.source, void }
end

-- Fails where something is not what it should be: numbers and texts cannot be compared with anything else.
local function read_rows(rec, rows, at)
  local list = {}
  for i, r in ipairs(rows) do
    assert(r[1] > "" and r[2] > "" and r[11] >= "" and r[3] > 0 and r[4] >= 0 and r[5] >= 0 and r[6] >= 0)
    assert(r[7] >= 0 and r[8] > 0 and r[9] >= 0 and r[10] >= 0 and r[12] <= 1)
    list[i] = {
      id = r[1], pool = r[2], amount = r[3], left = r[4], held = r[5], lost = r[6], starts = r[7], expires = r[8],
      priority = r[9], age = r[10], source = r[11], voided = r[12] == 1,
    }
  end
  for _ = 1, byte(rec, at) do
    local _, head, _, left = sunpack(DIGEST, rec, at + 1)
    if head > 0 then
      list[head].left = left
    end
    at = at + 22
  end
  assert(list[1])
  return list
end

-- What a record that was read has of grants. `rows`: its `k`; `at`: where its digest begins.
function grants.read(level, rows, at)
  local ok, list = pcall(read_rows, level.rec, rows, at)
  if not ok then
    unreadable(level.rec)
  end
  level.grants = list
end

-- Where a record's variable part begins, and its digest of grants (nil: there is none); `at`: the end of its states.
function grants.behind(level, at)
  local digest
  at = at + (has(level.flags, TTL) and 6 or 0) + (has(level.flags, HOLDS) and 6 or 0)
  if has(level.flags, GRANTS) then
    local pools = byte(level.rec, at)
    if not pools then
      unreadable(level.rec)
    end
    digest, at = at, at + 1 + 22 * pools
  end
  return at, digest
end

-- When the first grant is over that has something to let go of, or can leave; and when the first begins after `since`.
function grants.next(level, since)
  local over, begins = NEVER, NEVER
  for _, g in ipairs(level.grants or {}) do
    if g.held == 0 or g.left > 0 then
      over = min(over, g.expires)
    end
    if g.starts > since and not g.voided then
      begins = min(begins, g.starts)
    end
  end
  return over, begins
end

-- When the last grant of a pool is over.
function grants.last(level, name)
  local last = 0
  for _, g in ipairs(level.grants or {}) do
    last = g.pool == name and max(last, g.expires) or last
  end
  return last
end

-- Names of the pools of which grants begin at that instant.
function grants.beginning(level, at)
  local names = {}
  for _, g in ipairs(level.grants) do
    if g.starts == at and not g.voided then
      names[g.pool] = true
    end
  end
  return names
end

-- Lets go of what is over by then, unless something of it is held.
function grants.sweep(level, now)
  local kept = {}
  for _, g in ipairs(level.grants) do
    if g.expires <= now then
      g.left, g.lost = 0, g.lost + g.left
    end
    if g.held > 0 or g.expires > now then
      kept[#kept + 1] = g
    end
  end
  level.grants = kept[1] and kept or nil
end

-- Where the next charge of a pool goes, by the state that is about to be stored: see the top.
local function digest_of(level, L, state, seen, places)
  local _, fin, _, used, _, _, carried = sunpack(POOL_FORMAT, state, L.offset - HEADER)
  local list = live_of(level.grants, L.name, seen)
  local room, ends = huge, NEVER
  if L.limit ~= NONE then
    room = L.limit + max(0, carried) - used
  end
  for _, g in ipairs(level.grants) do
    if g.pool == L.name and not g.voided then
      ends = min(ends, g.starts > seen and g.starts or NEVER, g.expires > seen and g.expires or NEVER)
    end
  end
  local head, left, rest, waits = nil, 0, 0, room > 0
  for _, g in ipairs(list or {}) do
    if waits and (g.priority > ALLOWANCE or g.priority == ALLOWANCE and fin <= g.expires) then
      waits, head = false, head or 0
    end
    if not head and g.left > 0 then
      head, left = places[g], g.left
    else
      rest = rest + g.left
    end
  end
  head = head or waits and 0
  if not head or head > 255 then
    head, ends, left = 0, 0, 0 -- nothing that the plain case could do
  end
  return spack(DIGEST, L.index + (list and 128 or 0), head, ends, left, rest)
end

-- What of grants a record is stored with: its digest, and the parts `k` and `i` of what follows it.
function grants.stored(level, state, seen)
  local rows, places, pieces = {}, {}, {}
  for i, g in ipairs(level.grants) do
    rows[i], places[g] = as_row(g), i
  end
  for i = 1, #level.parsed.limits do
    local L = level.parsed.limits[i]
    L = level.effective and level.effective[i] or L
    if L.kind == POOL then
      for _, g in ipairs(level.grants) do
        if g.pool == L.name then
          pieces[#pieces + 1] = digest_of(level, L, state, seen, places)
          break
        end
      end
    end
  end
  return char(#pieces) .. concat(pieces), rows, level.parsed.implied
end

-- The index of the pool that all grants are for; nil where there are several.
function grants.only_pool(level)
  local name = level.grants[1].pool
  for _, g in ipairs(level.grants) do
    if g.pool ~= name then
      return nil
    end
  end
  local L = level.parsed.names[name]
  return L and L.kind == POOL and L.index or nil
end

-- Adds a grant. What has been spent longest makes room.
function grants.add(level, g, now)
  local list, spent, unspent, live = {}, 0, g.amount, 1
  for i = #(level.grants or {}), 1, -1 do -- the youngest first
    local other = level.grants[i]
    local empty = other.left + other.held == 0
    spent = spent + (empty and 1 or 0)
    if not empty or spent <= MOST_SPENT then
      list[#list + 1] = other
    end
    if not empty and other.expires > now then
      live = live + 1
      unspent = unspent + (other.pool == g.pool and other.left or 0)
    end
    if other.id == g.id then
      return STATUS_CONFLICT
    end
  end
  if live > MOST_GRANTS then
    bad("grant: at most " .. MOST_GRANTS .. " live grants per subject")
  elseif unspent > MAX_AMOUNT then
    bad("grant: at most 10^15 unspent per pool")
  end
  local ordered = {}
  for i = #list, 1, -1 do
    ordered[#ordered + 1] = list[i]
  end
  ordered[#ordered + 1] = g
  level.grants = ordered
  return nil
end

-- Takes back what is left of a grant. Returns how much, nil if there is no such grant.
function grants.void(level, id)
  local g = find_row(level, id)
  if not g then
    return nil
  end
  local n = g.left
  g.left, g.lost, g.voided = 0, g.lost + n, true
  return n
end

function grants.row(g)
  return mpack(as_row(g))
end

-- Rows as a reply gives them.
function grants.rows(level)
  local rows = {}
  for i, g in ipairs(level.grants or {}) do
    rows[i] = as_row(g)
  end
  return rows[1] and rows or nil
end
