-- Giving a whole operation back, limit by limit, to where it came from.
--
-- Its answer says what it charged to which limit, and the instant: by that a period or window that still runs is
-- known to be the one that was charged. Its note says the rest (charge.sources). What a limit has by now is
-- matched by name and kind.
-- @gives undo

local KINDS = { p = POOL, P = POOL, f = 2, s = 3, t = 4, l = SLOTS, g = FLAG }

local undo = {}

-- What a stored operation charged: {level = {{name, kind, resets, parts}, ...}}, parts as charge.sources has them,
-- and its instant.
local function charged(found)
  local text, k, at = found.stored, 0, 43
  local sections, now = sunpack("<Bd", text, 26)
  local by_level, by_number = {}, {}
  for _ = 1, sections do
    local level, count, length = sunpack("<BBI2", text, at)
    local rows, figures_at = {}, at + 4 + length
    local granted = 0
    for letter, name in sub(text, at + 4, figures_at - 1):gmatch("(%a)([^\n]*)\n") do
      granted = granted + (letter == "P" and 1 or 0)
      k = k + 1
      local _, _, _, _, _, applied, resets = sunpack(FIGURES, text, figures_at + #rows * 57)
      rows[#rows + 1] = { name = name, kind = KINDS[letter], resets = resets }
      by_number[k] = rows[#rows]
      rows[#rows].parts = applied > 0 and { { units = applied, mark = -1, over = 0 } } or {}
    end
    by_level[level], at = rows, figures_at + count * 57 + granted * 16
  end
  local listed = {}
  for _, part in ipairs(found.sources ~= "" and munpack(found.sources) or {}) do
    local row = by_number[part[1]]
    if not listed[row] then
      listed[row], row.parts = true, {}
    end
    row.parts[#row.parts + 1] = { units = part[2], mark = part[3], over = part[4], sources = part[5] }
  end
  return by_level, now
end

-- Gives back what came from grants, whatever became of the pool. Returns how much that was.
local function give_to_grants(level, row, now)
  local back = 0
  for _, part in ipairs(row and row.parts or {}) do
    if part.sources then
      local twice
      part.drawn, twice = grants.settle(level, part.sources, part.units - part.over, false, now)
      part.units = part.units - twice
      back = back + part.drawn
    end
  end
  return back
end

-- Gives the parts of a limit back. Returns how much came back.
local function give_back(L, row, at, now, s)
  local back = 0
  for _, part in ipairs(row.parts) do
    if part.mark < 0 then
      part.mark = L:marked(at, row.resets, s)
    end
    if part.mark then
      back = back + L:give_back(part, part.units, 0, now, s, part.drawn)
    end
  end
  return back
end

-- The limits of a level that the cost names reach now, and those that were charged under them; each with a hand.
-- Slots came back with the hold that took them.
local function gather(level, names, rows)
  local shape = policy.shape(level.parsed, names)
  local found, by_name = {}, {}
  local function add(L, first)
    local s = new_hand()
    s.limit, s.first = level.effective and level.effective[L.index] or L, first
    found[#found + 1], by_name[L.name] = s, s
  end
  for t = 1, shape.count do
    add(shape[t].limit, shape[t].first)
  end
  for _, row in ipairs(rows) do
    local L = level.parsed.names[row.name]
    if L and L.kind == row.kind and L.kind ~= SLOTS and #row.parts > 0 then
      if not by_name[L.name] then
        add(L, 0)
      end
      by_name[L.name].row = row
    end
  end
  return found
end

-- Gives back what came from grants for a name that is no pool any more. Returns whether anything did.
local function give_to_others(level, rows, now)
  local given = false
  for _, row in ipairs(level.parsed and level.grants and rows or {}) do
    local L = level.parsed.names[row.name]
    if row.kind == POOL and not (L and L.kind == POOL) then
      given = give_to_grants(level, row, now) > 0 or given
    end
  end
  return given
end

-- Brings the limits of a level to now and gives back what was charged to them. Returns the level's section of the
-- answer, how much more of the first cost name it has room for (huge: no bound), and whether it reaches that.
local function give_level(i, found, at, now, touched)
  local level = levels[i]
  local described, figures, balance, counted, behind = "", {}, huge, false, ""
  for n, s in ipairs(found) do
    local L, back = s.limit, 0
    local letter = LETTERS[L.kind]
    counted = counted or s.first > 0
    if L.kind == FLAG then
      figures[n] = spack(FIGURES, 1, NONE, 0, NONE, 0, 0, NONE, NONE)
    else
      if L.kind == POOL then
        back = give_to_grants(level, s.row, now)
        grants.arm(level, L, now, s)
      end
      L:load(level.rec, now, s)
      if s.row then
        back = back + give_back(L, s.row, at, now, s)
      end
      if L.kind == POOL and (s.grants or s.drawn > 0) then
        letter, behind = "P", behind .. spack("<dd", s.drawn, s.granted)
      end
      touched = touched or back > 0
      local limit, used, left, over, resets = L:figures(now, s)
      figures[n] = spack(FIGURES, 1, limit, used, left, over, back, resets, NONE)
      if s.first > 0 and L.overage ~= NONE then
        balance = min(balance, floor(max(0, s.left + L.overage) / s.first))
      end
    end
    described = described .. letter .. L.name .. "\n"
  end
  for _, s in ipairs(touched and found or {}) do
    local L = s.limit
    if L.kind < FLAG then
      if L.kind == POOL and s.ended then
        hold.close(level, L, s.ended)
      end
      level.rec = sub(level.rec, 1, L.offset - 1) .. L:pack(s) .. sub(level.rec, L.offset + L.size)
    end
  end
  slices[i] = touched and spack("<I6", now) .. sub(level.rec, HEADER + 1, level.parsed.tail - 1) or nil
  return spack("<BBI2", i, #found, #described) .. described .. concat(figures) .. behind, balance, counted
end

-- Gives back a stored operation. Returns the answer, laid out as charge.answer does; what is to be written is in
-- `slices`.
function undo.all(count, found, now)
  local by_level, at = charged(found)
  at = min(at, now)
  local sections, balance, counted = {}, huge, false
  for i = 1, count do
    slices[i] = nil
    local rows = by_level[i] or {}
    local limits = levels[i].parsed and gather(levels[i], found.names, rows) or {}
    local given = give_to_others(levels[i], rows, now)
    if #limits > 0 or given then
      local section, more, reached = give_level(i, limits, at, now, given)
      sections[#sections + 1] = #limits > 0 and section or nil
      balance, counted = min(balance, more), counted or reached
    end
  end
  balance = not counted and 0 or balance == huge and NONE or balance
  return spack("<BBBBdd", 0, OK, 1, #sections, now, balance) .. concat(sections)
end

-- Reads a path, and behind it the call's own operation id if there is one, the operation to give back, and the end
-- of a hold of the same id. Returns the number of levels, the instant, what the operation was, the key it is
-- stored under, and the call's own key if it has one - or nil and the status to answer.
function undo.read(keys, args)
  local context, extra = request.context(args[2]), request.extra(args[4])
  local total = #keys - extra.behind
  local count, own = total - 2, nil
  if args[3] ~= "" and op.check(args[3], keys[count]) then
    count, own = count - 1, keys[count]
  end
  if count < 1 or count > 4 then
    bad("keys: one per level of the path (1 to 4), then those of operations")
  end
  op.check_key(keys[total - 1], "o")
  op.check_key(keys[total], "e")
  local values = call("MGET", spread(keys, 1, total))
  local seen, status, instant = open_records(keys, values, count, context, extra, clock(args[1]), args[1] ~= "")
  local now = seen or instant
  -- What is stored is older than any plan change: it counts before what the records need.
  local first = own and op.find(values[count + 1], args[3], now)
  if first then
    return nil, first
  end
  local found, which = op.choose(values[total - 1], values[total], now)
  if not found then
    return nil, STATUS_UNKNOWN
  elseif found.below ~= op.below(keys[1], keys[count]) or not find(found.verb, "^[crm]$") then
    return nil, STATUS_UNKNOWN .. found.verb .. found.below
  elseif found.given_back then
    return nil, STATUS_REPLAY .. found.given_back
  elseif not seen then
    return nil, status
  end
  return count, seen, found, keys[total - 2 + which], own
end
