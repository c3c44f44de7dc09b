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

local FIRST, VAR, TTL = 1, 2, 4
local HEAD = "<BBc8I4I6"
local ABSENT = "\0\0\0\0\0\0\0\0"

local record = {}
local levels = { {}, {}, {}, {} }
local contexts, context_count = {}, 0

local function has(flags, bit)
  return flags % (bit * 2) >= bit
end

-- The caller's view of the catalog: revision, the policy of a root's first sight (8 zero bytes: none),
-- and either the group that `join` asks for or "!": records here follow exactly that policy.
function record.context(text)
  local known = contexts[text]
  if known then
    return known
  end
  if #text < 12 or #text > 76 then
    bad("context: 4 bytes of revision, 8 of policy, then a group or '!'")
  end
  local rev, first = sunpack("<I4c8", text)
  local rest = sub(text, 13)
  if rest ~= "" and rest ~= "!" and not find(rest, "^[%w_.-]+$") then
    bad("context: not a group name")
  end
  known = { rev = rev, first = first ~= ABSENT and first or nil, pinned = rest == "!" }
  known.join = not known.pinned and rest ~= "" and rest or nil
  if known.pinned and not known.first then
    bad("context: '!' goes with a policy")
  end
  if context_count >= 64 then
    contexts, context_count = {}, 0
  end
  contexts[text], context_count = known, context_count + 1
  return known
end

-- What a repeated call brings along: {p = {policy name = bytes}, m = {{level, from, old, to}, ...}}.
-- A move says: the record of that level, if laid out by `from`, is read by the definitions of `old` and
-- becomes one of `to`. A level may be offered several, for what its record may have become.
function record.extra(text)
  if text == "" then
    return {}
  end
  local ok, extra = pcall(munpack, text)
  if not ok or type(extra) ~= "table" then
    bad("extra: not a msgpack map")
  end
  if extra.p ~= nil and type(extra.p) ~= "table" then
    bad("extra: policies are a map of bytes")
  end
  if extra.m ~= nil then
    local moves = {}
    if type(extra.m) ~= "table" then
      bad("extra: moves are a list")
    end
    for _, move in ipairs(extra.m) do
      local level = type(move) == "table" and #move == 4 and move[1]
      if level ~= 1 and level ~= 2 and level ~= 3 and level ~= 4 then
        bad("extra: a move is level, from, old, to")
      end
      for i = 2, 4 do
        if type(move[i]) ~= "string" or #move[i] ~= 8 then
          bad("extra: a move is level, from, old, to")
        end
      end
      moves[move[1]] = moves[move[1]] or {}
      moves[move[1]][move[2]] = move
    end
    extra.m = moves
  end
  return extra
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

-- Packs the states that `prepare(limit)` lays out in S for every limit of a policy.
local function pack_states(parsed, effective, prepare)
  local parts = {}
  for i = 1, #parsed.limits do
    local L = parsed.limits[i]
    if L.kind < FLAG then
      local E = effective and effective[i] or L
      prepare(E)
      parts[#parts + 1] = spack("<" .. L.layout, spread(N, 1, L.put(E, 0, 0)))
    end
  end
  return concat(parts)
end

-- A record for a subject that has none. Nothing is stored yet.
-- `anchors`: instants from which the pools of these names count, instead of now.
function record.fresh(level, parsed, rev, now, flags, anchors)
  level.parsed, level.flags, level.fresh = parsed, flags, true
  local state = pack_states(parsed, nil, function(L)
    L.fresh(L, now, anchors and anchors[L.name] or now, 0)
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
-- `adapt(limit, before)` carries over in its own way.
function record.convert(level, parsed, var, rev, now, anchors, adapt)
  local from, old_effective, rec = level.parsed, level.effective, level.rec
  local effective = effective_limits(parsed, var)
  local state = pack_states(parsed, effective, function(L)
    local before = from.names[L.name]
    if before and old_effective and old_effective[before.index] then
      before = old_effective[before.index]
    end
    if before and before.kind == L.kind then
      before.load(before, rec, now, 0)
      if adapt then
        adapt(L, before)
      else
        before.convert(before, L, now, 0)
      end
    else
      L.fresh(L, now, anchors and anchors[L.name] or now, 0)
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

-- When a record was last written.
function record.seen(rec)
  return (sunpack("<I6", rec, 15))
end

-- A move must not read a record by definitions that it is not laid out by. `from`: the policy that the
-- record names, where it is at hand.
local function check_layout(level, from)
  local old, size = level.parsed, #level.rec + 1
  if size < old.tail or size > old.tail and level.flags < VAR or from and from.layout ~= old.layout then
    bad("extra: a move by definitions that the record is not laid out by")
  end
end

-- Brings the records of a path in hand: `values` are the stored bytes (false: none), `now` what the
-- clock says. A record behind the catalog needs a move, and so does every stored record where the
-- caller moves records itself: `mover(level, policy, now)`, policy nil for an unseen subject that
-- would be nothing. Returns the instant of the call; or nil, the status to answer
-- instead, and the instant.
function record.open(keys, values, count, context, extra, now, manual, mover)
  for i = 1, count do
    local rec = values[i]
    local level = levels[i]
    level.key, level.rec, level.parsed, level.shape = keys[i], rec, nil, nil
    level.var, level.effective, level.expires = nil, nil, nil
    level.fresh, level.moved, level.settled = false, false, false
    if rec then
      if #rec < HEADER then
        error("METERD-LAYOUT a record of " .. #rec .. " bytes", 0)
      end
      local version, flags, fp, rev, seen = sunpack(HEAD, rec)
      if version ~= 1 then
        error("METERD-LAYOUT record of layout " .. version, 0)
      end
      level.flags, level.fp, level.rev, level.seen = flags, fp, rev, seen
      if seen > now then
        now = seen
      end
    end
  end
  local stale, need
  for i = 1, count do
    local level = levels[i]
    if level.rec then
      local move = extra.m and extra.m[i] and extra.m[i][level.fp]
      if move and not mover and move[4] == level.fp and level.rev == context.rev then
        move = nil -- it has been made
      end
      if move and level.rev <= context.rev then
        level.to, level.parsed = policy.get(move[4], extra.p), policy.get(move[3], extra.p)
        if not level.to or not level.parsed then
          need = (need or "") .. (level.to and "" or move[4]) .. (level.parsed and "" or move[3])
        else
          check_layout(level, policy.get(level.fp, extra.p))
        end
      elseif mover then
        stale = (stale or "") .. char(i) .. level.fp .. spack("<I4", level.rev)
      else
        level.to = nil
        level.parsed = policy.get(level.fp, extra.p)
        if not level.parsed then
          need = (need or "") .. level.fp
        elseif context.pinned then
          if level.fp ~= context.first then
            level.to = policy.get(context.first, extra.p)
            if not level.to then
              need = (need or "") .. context.first
            end
          end
        elseif level.rev < context.rev or i == 1 and context.join and not level.parsed.groups[context.join] then
          stale = (stale or "") .. char(i) .. level.fp .. spack("<I4", level.rev)
        end
      end
    elseif i == 1 and context.first then
      level.parsed = policy.get(context.first, extra.p)
      if not level.parsed then
        need = (need or "") .. context.first
      end
    end
  end
  if stale then
    return nil, STATUS_STALE .. stale, now
  end
  if need then
    return nil, STATUS_NEED .. need, now
  end
  for i = 1, count do
    local level = levels[i]
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
    else
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
  end
  return now
end

-- The write phase: everything that changed, in one command, so that a failure leaves all or nothing.
-- `slices[i]` replaces bytes 15.. of level i's record. Returns after the TTLs are set, which only
-- free memory.
function record.write(count, slices, now, op_key, op_value, op_ttl)
  local writes, expiring = 0, nil
  local only
  for i = 1, count do
    local level = levels[i]
    if slices[i] or level.fresh or level.moved then
      writes = writes + 1
      only = i
      if has(level.flags, TTL) and level.expires < now + level.parsed.forgettable then
        level.expires = now + 2 * level.parsed.forgettable
        local at = level.parsed.tail
        level.rec = sub(level.rec, 1, at - 1) .. spack("<I6", level.expires) .. sub(level.rec, at + 6)
        expiring = expiring or {}
        expiring[i] = true
        level.settled = true
      end
    end
  end
  if writes == 0 and not op_key then
    return
  end
  if writes == 1 and not op_key then
    local level = levels[only]
    local slice = slices[only]
    if not (level.fresh or level.moved or level.settled) then
      call("SETRANGE", level.key, 14, slice)
      return
    end
    if slice then
      level.rec = sub(level.rec, 1, 14) .. slice .. sub(level.rec, 15 + #slice)
    end
    if expiring then
      call("SET", level.key, level.rec, "PX", format("%.0f", level.expires - now))
    elseif has(level.flags, TTL) then
      call("SET", level.key, level.rec, "KEEPTTL")
    else
      call("SET", level.key, level.rec)
    end
    return
  end
  local pairs_to_set, n = {}, 0
  for i = 1, count do
    local level = levels[i]
    if slices[i] or level.fresh or level.moved then
      local rec = level.rec
      if slices[i] then
        rec = sub(rec, 1, 14) .. slices[i] .. sub(rec, 15 + #slices[i])
      end
      pairs_to_set[n + 1], pairs_to_set[n + 2] = level.key, rec
      n = n + 2
    end
  end
  if op_key then
    pairs_to_set[n + 1], pairs_to_set[n + 2] = op_key, op_value
  end
  call("MSET", spread(pairs_to_set))
  for i = 1, count do
    local level = levels[i]
    if (slices[i] or level.fresh or level.moved) and has(level.flags, TTL) then
      call("PEXPIRE", level.key, format("%.0f", level.expires - now))
    end
  end
  if op_key and op_ttl then
    call("PEXPIRE", op_key, format("%.0f", op_ttl))
  end
end
