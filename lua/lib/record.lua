-- Records: one string per subject, read once and written once.
--
--   byte 1      layout version (2)
--   byte 2      flags: 1 made by first sight, 2 has a variable part, 4 carries its expiry, 8 has holds, 32 has a
--               variable part of nothing but books (then not 2), 64 is in its partition's index
--   byte 3-10   name of the policy it is laid out by
--   byte 11-14  catalog revision it was brought to
--   byte 15-20  last seen: the instant of its last write, ms
--   byte 21-    state of every limit, in the policy's order
--   then, with flag 4, 6 bytes: the instant its Redis TTL was set to
--   then, with flag 8, 6 bytes: `due`, the instant at which the first of its holds expires
--   with flag 128, behind the states: pools that only grants fill; with flag 16, behind all of this, a digest of
--   the grants (both: grants.lua)
--   then, with flag 2 or 32, msgpack {o = {name = {l, v, b, e}}, g = {name = n}, b = books, k, i}: overrides (limit,
--   overage, burst, expires); how often a limit began anew while holds were open, so that a hold gives nothing
--   back to a state that it never charged; the books of bill.lua; grants
--
-- A level in hand is a table: key, rec (the record's bytes, always whole), parsed (its policy),
-- flags, var, effective (limits under an override, by index), holds (see hold.lua), grants (see grants.lua); fresh,
-- moved: bytes that differ from what is stored; settled: it has to be stored whole; news: see bill.lua. At most four
-- are in hand; the tables are reused from call to call.
-- @gives record levels

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

-- Whether there is more in a record than the state.
local function extended(flags)
  return flags % LISTED >= VAR
end

-- A variable part without one of its fields; nil if nothing is left.
local function without(var, field)
  local rest
  for name, value in pairs(var) do
    if name ~= field then
      rest = rest or {}
      rest[name] = value
    end
  end
  return rest
end

-- Puts the record's bytes together: header, state, and what `level` says of the rest.
function record.rebuild(level, rev, seen, state)
  local flags = (has(level.flags, FIRST) and FIRST or 0) + (has(level.flags, LISTED) and LISTED or 0)
  local tail, due = "", level.holds and level.holds.due
  if has(level.flags, TTL) then
    flags = flags + TTL
    tail = spack("<I6", level.expires)
  end
  if due then
    flags = flags + HOLDS
    tail = tail .. spack("<I6", due)
  end
  local var = level.var
  local read = var and (not var.b or without(var, "b")) -- whether a plain charge has to know of it
  if level.grants then
    local digest, rows, names = grants.stored(level, state, seen)
    local both = { k = rows, i = names }
    for name, value in pairs(var or {}) do
      both[name] = value
    end
    var, tail, flags = both, tail .. digest, flags + GRANTS + (names and IMPLIED or 0)
  end
  if var then
    flags = flags + (read and VAR or BOOKS)
    tail = tail .. mpack(var)
  end
  level.flags, level.rev, level.seen = flags, rev, seen
  level.rec = spack(HEAD, LAYOUT, flags, level.parsed.fp, rev, seen) .. state .. tail
end

-- Packs the states that `prepare(limit, hand)` makes for every limit of a policy.
local function pack_states(parsed, effective, prepare)
  local parts, s = {}, new_hand()
  for i = 1, #parsed.limits do
    local L = parsed.limits[i]
    if L.kind < FLAG then
      local E = effective and effective[i] or L
      if L.implied and L.name == parsed.implied[1] then
        parts[#parts + 1] = char(#parsed.implied)
      end
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
  record.rebuild(level, rev, now, state)
end

-- Which limits an override changes: {index = limit}, or nil.
local function effective_limits(parsed, overrides)
  local changed
  for name, fields in pairs(overrides or {}) do
    local L = parsed.names[name]
    if L and L.kind < FLAG and not L.implied then
      changed = changed or {}
      changed[L.index] = policy.overridden(L, fields)
    end
  end
  return changed
end

-- The variable part: overrides, and the generations of limits while holds are open. `begun`: names of
-- limits that begin anew.
local function variable(level, overrides, begun)
  local generations
  if level.holds and level.holds.due then
    generations = level.var and level.var.g
    for name in pairs(begun) do
      local bumped = {}
      for other, n in pairs(generations or {}) do
        bumped[other] = n
      end
      bumped[name] = (bumped[name] or 0) + 1
      generations = bumped
    end
  end
  local var
  for name, value in pairs(level.var or {}) do
    if name ~= "o" and name ~= "g" then
      var = var or {}
      var[name] = value
    end
  end
  if overrides or generations then
    var = var or {}
    var.o, var.g = overrides, generations
  end
  return var
end

-- No hold is open any more: nobody asks how often a limit began anew.
function record.drop_generations(level)
  level.var = level.var and without(level.var, "g")
end

-- Lays the record out anew: every limit is brought to `now` under its old definition, then carried
-- over to its new one (matched by name and kind), or made fresh, counting from `anchors` as above.
-- `adapt(limit, before, hand)` carries over in its own way, and returns true if the limit begins anew.
function record.convert(level, parsed, overrides, rev, now, anchors, adapt)
  local from, old_effective, rec = level.parsed, level.effective, level.rec
  parsed = implied.pools(level, parsed)
  local effective, begun = effective_limits(parsed, overrides), {}
  local listed = has(level.flags, LISTED) and ledger.due(from, rec)
  for i, before in ipairs(from.limits) do
    local L = parsed.names[before.name]
    if before.kind < FLAG and not (L and L.kind == before.kind) then
      begun[before.name] = true
      if before.kind == POOL then
        ledger.drop(level, old_effective and old_effective[i] or before, now)
      end
    end
  end
  local state = pack_states(parsed, effective, function(L, s)
    local before = from.names[L.name]
    if before and old_effective and old_effective[before.index] then
      before = old_effective[before.index]
    end
    if before and before.kind == L.kind then
      before:load(rec, now, s)
      local ended = L.kind == POOL and s.ended
      if L.kind == 3 and (before.per ~= L.per or before.tick ~= L.tick) then
        begun[L.name] = true
      end
      if adapt then
        if adapt(L, before, s) then
          begun[L.name] = true
        end
      else
        before:convert(L, now, s)
      end
      if L.kind == POOL then
        ledger.move(level, before, L, s, ended)
      end
    else
      L:fresh(now, anchors and anchors[L.name] or now, s)
    end
  end)
  if has(level.flags, TTL) and not parsed.forgettable or overrides then
    level.flags = (has(level.flags, FIRST) and FIRST or 0) + (listed and LISTED or 0)
  end
  level.parsed, level.var, level.effective = parsed, variable(level, overrides, begun), effective
  record.rebuild(level, rev, now, state)
  ledger.relist(level, listed or huge)
  level.moved = true
end

-- The override that ends first: its name and the instant, if that is not after now.
local function ended_override(level, now)
  local first, name
  for candidate, fields in pairs(level.var and level.var.o or {}) do
    if fields.e and fields.e <= now and (not first or fields.e < first) then
      first, name = fields.e, candidate
    end
  end
  return name, first
end

local function end_override(level, ended, rev, at)
  local rest
  for name, fields in pairs(level.var.o) do
    if name ~= ended then
      rest = rest or {}
      rest[name] = fields
    end
  end
  local moved = level.moved
  record.convert(level, level.parsed, rest, rev, at)
  level.moved, level.settled = moved, true
end

-- Ends the overrides and holds whose time is over one by one, each at its own instant.
local function catch_up(level, rev, seen, now)
  local given = false
  while true do
    local due = level.holds and level.holds.due or NEVER
    local name, ends = ended_override(level, now)
    if name and ends <= due then
      end_override(level, name, rev, max(ends, seen))
    elseif due <= now then
      hold.expire(level, max(due, seen), now)
      given = true
    else
      break
    end
  end
  if given then
    if not level.holds.due then
      record.drop_generations(level)
    end
    record.rebuild(level, level.rev, level.seen, sub(level.rec, HEADER + 1, level.parsed.tail - 1))
    level.settled = true
  end
end

-- Where a record's variable part begins, and its digest of grants (nil: there is none).
local function behind_states(level)
  local at, digest = level.parsed.tail, nil
  at = at + (has(level.flags, TTL) and 6 or 0) + (has(level.flags, HOLDS) and 6 or 0)
  if has(level.flags, GRANTS) then
    digest, at = at, at + grants.digest_size(level.rec, at)
  end
  return at, digest
end

-- The policy of that name as this record is laid out by it, nil if it is not at hand.
local function laid_out(level, fp, blobs)
  local parsed = policy.get(fp, blobs)
  return parsed and level.flags >= IMPLIED and implied.read(level, parsed) or parsed
end

-- Decodes what few records have.
local function read_variable(level, rev, seen, now)
  if has(level.flags, TTL) then
    level.expires = sunpack("<I6", level.rec, level.parsed.tail)
  end
  local at, digest = behind_states(level)
  if has(level.flags, VAR) or has(level.flags, BOOKS) then
    local var = munpack(sub(level.rec, at))
    if var.k then
      grants.read(level, var.k, digest)
      var.k, var.i = nil, nil
    end
    level.var = next(var) and var or nil
    level.effective = effective_limits(level.parsed, var.o)
  end
  catch_up(level, rev, seen, now)
  if level.grants and grants.sweep(level, now) then
    local moved = level.moved
    record.convert(level, level.parsed, level.var and level.var.o, rev, max(seen, now))
    level.moved, level.settled = moved, true
  end
end

-- Takes a record in hand as it was written, and brings it nowhere. Returns whether its policy is at hand.
function record.peek(level, key, rec, policies)
  if #rec < HEADER then
    too_short(rec)
  end
  local version, flags, fp, rev, seen = sunpack(HEAD, rec)
  if version ~= LAYOUT then
    error("METERD-LAYOUT record of layout " .. version, 0)
  end
  level.key, level.rec, level.flags, level.fp, level.rev, level.seen = key, rec, flags, fp, rev, seen
  level.parsed, level.var, level.news, level.grants = laid_out(level, fp, policies), nil, nil, nil
  level.holds = has(flags, HOLDS) and {} or nil
  if level.parsed and (has(flags, VAR) or has(flags, BOOKS)) then
    level.var = munpack(sub(rec, (behind_states(level))))
  end
  return level.parsed ~= nil
end

-- Reads when a record's first hold expires. Returns whether it has, and the keys to do something about it
-- are not at hand.
local function read_due(level, now)
  local at = level.parsed.tail + (has(level.flags, TTL) and 6 or 0)
  local H = level.holds or {}
  if #level.rec < at + 5 then
    too_short(level.rec)
  end
  level.holds, H.due, H.brief = H, sunpack("<I6", level.rec, at), has(level.flags, TTL)
  return H.due <= now and not H.hash
end

-- Whether the record is to stay from now on, while the keys of its holds, which are not at hand, would go.
function record.outlives_holds(level)
  local H = level.holds
  return H and H.brief and not H.hash and not has(level.flags, TTL)
end

-- A move must not read a record by definitions that it is not laid out by. `from`: the policy that the
-- record names, where it is at hand.
local function check_layout(level, from)
  local old, size = level.parsed, #level.rec + 1
  if size < old.tail or size > old.tail and not extended(level.flags) or from and from.layout ~= old.layout then
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
    level.to, level.parsed = policy.get(move[4], extra.p), laid_out(level, move[3], extra.p)
    if not level.to or not level.parsed then
      return "", (level.to and "" or move[4]) .. (level.parsed and "" or move[3])
    end
    check_layout(level, laid_out(level, level.fp, extra.p))
    return "", ""
  end
  local parsed = laid_out(level, level.fp, extra.p)
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
  if extended(level.flags) then
    read_variable(level, level.rev, level.seen, now)
  end
  if mover then
    mover(level, level.to, now)
  elseif level.to then
    local same = level.to == (parsed.base or parsed) and level.rev == context.rev
    record.convert(level, level.to, level.var and level.var.o, context.rev, now)
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
  local stale, need, holds, settled = "", "", "", true
  for i = 1, count do
    local rec, level = values[i], levels[i]
    level.key, level.rec, level.parsed, level.shape = keys[i], rec, nil, nil
    level.var, level.effective, level.to, level.holds, level.news = nil, nil, nil, nil, nil
    level.grants, level.draws = nil, false
    level.fresh, level.moved, level.settled = false, false, false
    if rec then
      if #rec < HEADER then
        too_short(rec)
      end
      local version, flags, fp, rev, seen = sunpack(HEAD, rec)
      if version ~= LAYOUT then
        error("METERD-LAYOUT record of layout " .. version, 0)
      end
      level.flags, level.fp, level.rev, level.seen = flags, fp, rev, seen
      if seen > now then
        now = seen
      end
      if plain and rev >= context.rev then -- nearly always
        local parsed = laid_out(level, fp, extra.p)
        level.parsed = parsed
        if not parsed then
          need = need .. fp
        end
      else
        local behind, missing = find_policies(i, level, context, extra, mover)
        stale, need = stale .. behind, need .. missing
      end
      if extended(flags) or level.to then
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
  partition.open(keys, extra.e)
  if extra.h then
    local at = #keys - extra.behind
    for j, i in ipairs(extra.h) do
      if i > count then
        bad("extra: holds of a level that the call does not name")
      end
      hold.keys(levels[i], keys[at + 2 * j - 1], keys[at + 2 * j])
    end
  end
  if mover or not settled then
    for i = 1, count do
      local level = levels[i]
      if level.rec and has(level.flags, HOLDS) and read_due(level, now) then
        holds = holds .. char(i)
      end
    end
    if holds ~= "" then
      return nil, STATUS_HOLDS .. holds, now
    end
    for i = 1, count do
      settle(levels[i], context, now, manual, mover)
      if record.outlives_holds(levels[i]) then
        holds = holds .. char(i)
      end
    end
    if holds ~= "" then
      return nil, STATUS_HOLDS .. holds, now
    end
  end
  return now
end
