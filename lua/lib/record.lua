-- Records: one string per subject, read once and written once.
--
--   byte 1      layout version (1)
--   byte 2      flags: 1 made by first sight, 2 has a variable part, 4 carries its expiry
--   byte 3-10   name of the policy it is laid out by
--   byte 11-14  catalog revision it was brought to
--   byte 15-20  last seen: the instant of its last write, ms
--   byte 21-    state of every limit, in the policy's order
--   then, with flag 4, 6 bytes: the instant its Redis TTL was set to
--   then, with flag 2, msgpack {o = {name = {l, v, b, e}}}: overrides (limit, overage, burst, expires)
--
-- A level in hand is a table: key, rec (the record's bytes, always whole), parsed (its policy),
-- flags, var, effective (limits under an override, by index); fresh, moved: bytes that differ from
-- what is stored. At most four are in hand; the tables are reused from call to call.
-- @gives record levels FIRST TTL

local FIRST, VAR, TTL = 1, 2, 4 -- the biggest comes last: flags >= TTL means that it is set
local HEAD = "<BBc8I4I6"

local record = {}
local levels = { {}, {}, {}, {} }

local function too_short(rec)
  error("METERD-LAYOUT a record of " .. #rec .. " bytes", 0)
end

-- When a record was last written.
function record.seen(rec)
  if #rec < HEADER then
    too_short(rec)
  end
  return (sunpack("<I6", rec, 15))
end

local function has(flags, bit)
  return flags % (bit * 2) >= bit
end

local function rebuild(level, rev, seen, state)
  local flags = (has(level.flags, FIRST) and FIRST or 0)
  local tail = ""
  if has(level.flags, TTL) then
    flags = flags + TTL
    tail = spack("<I6", level.expires)
  end
  if level.var then
    flags = flags + VAR
    tail = tail .. mpack(level.var)
  end
  level.flags, level.rev, level.seen = flags, rev, seen
  level.rec = spack(HEAD, 1, flags, level.parsed.fp, rev, seen) .. state .. tail
end

-- Packs the states that `prepare(limit, hand)` makes for every limit of a policy.
local function pack_states(parsed, effective, prepare)
  local parts, s = {}, new_hand()
  for i = 1, #parsed.limits do
    local L = parsed.limits[i]
    if L.kind < FLAG then
      local E = effective and effective[i] or L
      prepare(E, s)
      parts[#parts + 1] = E:pack(s)
    end
  end
  return concat(parts)
end

-- A record for a subject that has none. Nothing is stored yet.
-- `anchors`: instants from which the pools of these names count, instead of now.
function record.fresh(level, parsed, rev, now, flags, anchors)
  level.parsed, level.flags, level.fresh = parsed, flags, true
  local state = pack_states(parsed, nil, function(L, s)
    L:fresh(now, anchors and anchors[L.name] or now, s)
  end)
  rebuild(level, rev, now, state)
end

-- Which limits an override changes: {index = limit}, or nil.
local function effective_limits(parsed, var)
  local changed
  for name, fields in pairs(var and var.o or {}) do
    local L = parsed.names[name]
    if L and L.kind < FLAG then
      changed = changed or {}
      changed[L.index] = policy.overridden(L, fields)
    end
  end
  return changed
end

-- Lays the record out anew: every limit is brought to `now` under its old definition, then carried
-- over to its new one (matched by name and kind), or made fresh, counting from `anchors` as above.
-- `adapt(limit, before, hand)` carries over in its own way.
function record.convert(level, parsed, var, rev, now, anchors, adapt)
  local from, old_effective, rec = level.parsed, level.effective, level.rec
  local effective = effective_limits(parsed, var)
  local state = pack_states(parsed, effective, function(L, s)
    local before = from.names[L.name]
    if before and old_effective and old_effective[before.index] then
      before = old_effective[before.index]
    end
    if before and before.kind == L.kind then
      before:load(rec, now, s)
      if adapt then
        adapt(L, before, s)
      else
        before:convert(L, now, s)
      end
    else
      L:fresh(now, anchors and anchors[L.name] or now, s)
    end
  end)
  if has(level.flags, TTL) and not parsed.forgettable or var then
    level.flags = has(level.flags, FIRST) and FIRST or 0
  end
  level.parsed, level.var, level.effective = parsed, var, effective
  rebuild(level, rev, now, state)
  level.moved = true
end

-- Overrides that ended are taken off one by one, each at its own instant.
local function expire_overrides(level, rev, seen, now)
  while true do
    local first, name
    for candidate, fields in pairs(level.var and level.var.o or {}) do
      if fields.e and fields.e <= now and (not first or fields.e < first) then
        first, name = fields.e, candidate
      end
    end
    if not first then
      return
    end
    local rest
    for other, fields in pairs(level.var.o) do
      if other ~= name then
        rest = rest or {}
        rest[other] = fields
      end
    end
    local moved = level.moved
    record.convert(level, level.parsed, rest and { o = rest } or nil, rev, max(first, seen))
    level.moved, level.settled = moved, true
  end
end

-- Decodes what few records have.
local function read_variable(level, rev, seen, now)
  local at = level.parsed.tail
  if has(level.flags, TTL) then
    level.expires = sunpack("<I6", level.rec, at)
    at = at + 6
  end
  if has(level.flags, VAR) then
    level.var = munpack(sub(level.rec, at))
    level.effective = effective_limits(level.parsed, level.var)
    expire_overrides(level, rev, seen, now)
  end
end

-- A move must not read a record by definitions that it is not laid out by. `from`: the policy that the
-- record names, where it is at hand.
local function check_layout(level, from)
  local old, size = level.parsed, #level.rec + 1
  if size < old.tail or size > old.tail and level.flags < VAR or from and from.layout ~= old.layout then
    bad("extra: a move by definitions that the record is not laid out by")
  end
end

-- Finds the policy that record i is laid out by (level.parsed), and the one to move it to, if any
-- (level.to). Returns what to answer of it instead: what is stale, and which policies are needed.
local function find_policies(i, level, context, extra, mover)
  local move = extra.m and extra.m[i] and extra.m[i][level.fp]
  if move and not mover and move[4] == level.fp and level.rev == context.rev then
    move = nil -- it has been made
  end
  if move and level.rev <= context.rev then
    level.to, level.parsed = policy.get(move[4], extra.p), policy.get(move[3], extra.p)
    if not level.to or not level.parsed then
      return "", (level.to and "" or move[4]) .. (level.parsed and "" or move[3])
    end
    check_layout(level, policy.get(level.fp, extra.p))
    return "", ""
  end
  local parsed = policy.get(level.fp, extra.p)
  level.parsed = parsed
  if not mover then
    if not parsed then
      return "", level.fp
    elseif context.pinned then
      level.to = level.fp ~= context.first and policy.get(context.first, extra.p)
      return "", level.to == nil and context.first or ""
    elseif level.rev >= context.rev and (i > 1 or not context.join or parsed.groups[context.join]) then
      return "", ""
    end
  end
  return char(i) .. level.fp .. spack("<I4", level.rev), ""
end

-- What few records need: overrides to read, a move to make, a record of first sight.
local function settle(level, context, now, manual, mover)
  local parsed = level.parsed
  if not level.rec then
    if mover then
      mover(level, parsed, now)
    elseif parsed then
      local flags = FIRST
      if parsed.forgettable and not manual then
        flags, level.expires = FIRST + TTL, 0
      end
      record.fresh(level, parsed, context.rev, now, flags)
    end
    return
  end
  if level.flags >= VAR then
    read_variable(level, level.rev, level.seen, now)
  end
  if mover then
    mover(level, level.to, now)
  elseif level.to then
    local same = level.to == parsed and level.rev == context.rev
    record.convert(level, level.to, level.var, context.rev, now)
    if same then
      -- Only its zones are written out further: no reason to write it now.
      level.moved, level.settled = false, true
    end
  end
end

-- Brings the records of a path in hand: `values` are the stored bytes (false: none), `now` what the
-- clock says. A record behind the catalog needs a move, and so does every stored record where the
-- caller moves records itself: `mover(level, policy, now)`, policy nil for an unseen subject that
-- would be nothing. Returns the instant of the call; or nil, the status to answer instead, and the
-- instant.
function record.open(keys, values, count, context, extra, now, manual, mover)
  local plain = context.plain and not (mover or extra.m)
  local stale, need, settled = "", "", true
  for i = 1, count do
    local rec, level = values[i], levels[i]
    level.key, level.rec, level.parsed, level.shape = keys[i], rec, nil, nil
    level.var, level.effective, level.to = nil, nil, nil
    level.fresh, level.moved, level.settled = false, false, false
    if rec then
      if #rec < HEADER then
        too_short(rec)
      end
      local version, flags, fp, rev, seen = sunpack(HEAD, rec)
      if version ~= 1 then
        error("METERD-LAYOUT record of layout " .. version, 0)
      end
      level.flags, level.fp, level.rev, level.seen = flags, fp, rev, seen
      if seen > now then
        now = seen
      end
      if plain and rev >= context.rev then -- nearly always
        local parsed = policy.get(fp, extra.p)
        level.parsed = parsed
        if not parsed then
          need = need .. fp
        end
      else
        local behind, missing = find_policies(i, level, context, extra, mover)
        stale, need = stale .. behind, need .. missing
      end
      if flags >= VAR or level.to then
        settled = false
      end
    else
      if i == 1 and context.first then
        level.parsed = policy.get(context.first, extra.p)
        if not level.parsed then
          need = need .. context.first
        end
      end
      settled = false
    end
  end
  if stale ~= "" then
    return nil, STATUS_STALE .. stale, now
  elseif need ~= "" then
    return nil, STATUS_NEED .. need, now
  end
  if mover or not settled then
    for i = 1, count do
      settle(levels[i], context, now, manual, mover)
    end
  end
  return now
end

-- Moves the instant of the Redis TTL on: it only ever grows, and not with every call.
local function extend(level, now)
  local at = level.parsed.tail
  level.expires = now + 2 * level.parsed.forgettable
  level.rec = sub(level.rec, 1, at - 1) .. spack("<I6", level.expires) .. sub(level.rec, at + 6)
  level.settled = true
end

-- The bytes to store, where `slice` replaces those from 15 on.
local function sliced(level, slice)
  if not slice then
    return level.rec
  end
  return sub(level.rec, 1, 14) .. slice .. sub(level.rec, 15 + #slice)
end

-- The write phase: everything that changed, in one command, so that a failure leaves all or nothing.
-- `slices[i]` replaces bytes 15.. of level i's record. Returns after the TTLs are set, which only
-- free memory.
function record.write(count, slices, now, op_key, op_value, op_ttl)
  local writes, only, extended = 0, 1, false
  for i = 1, count do
    local level = levels[i]
    if slices[i] or level.fresh or level.moved then
      writes, only = writes + 1, i
      if level.flags >= TTL and level.expires < now + level.parsed.forgettable then
        extend(level, now)
        extended = true
      end
    end
  end
  if writes == 1 and not op_key then
    local level, slice = levels[only], slices[only]
    if not (level.fresh or level.moved or level.settled) then
      call("SETRANGE", level.key, 14, slice)
    elseif extended then
      call("SET", level.key, sliced(level, slice), "PX", format("%.0f", level.expires - now))
    elseif level.flags >= TTL then
      call("SET", level.key, sliced(level, slice), "KEEPTTL")
    else
      call("SET", level.key, sliced(level, slice))
    end
    return
  end
  local sets, n = {}, 0
  for i = 1, count do
    local level = levels[i]
    if slices[i] or level.fresh or level.moved then
      sets[n + 1], sets[n + 2] = level.key, sliced(level, slices[i])
      n = n + 2
    end
  end
  if op_key then
    sets[n + 1], sets[n + 2] = op_key, op_value
    n = n + 2
  end
  if n == 0 then
    return
  end
  call("MSET", spread(sets))
  for i = 1, count do
    local level = levels[i]
    if (slices[i] or level.fresh or level.moved) and level.flags >= TTL then
      call("PEXPIRE", level.key, format("%.0f", level.expires - now))
    end
  end
  if op_key and op_ttl then
    call("PEXPIRE", op_key, format("%.0f", op_ttl))
  end
end
