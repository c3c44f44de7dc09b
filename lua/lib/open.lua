-- Records as a call takes them in hand: read, brought to the caller's catalog and to now.
-- @gives open_records

-- Reads when a record's first hold expires. Returns whether it has, and the keys to do something about it
-- are not at hand.
local function read_due(level, now)
  local at = level.parsed.tail + (has(level.flags, TTL) and 6 or 0)
  local H = level.holds or {}
  if #level.rec < at + 5 then
    unreadable(level.rec)
  end
  level.holds, H.due, H.brief = H, sunpack("<I6", level.rec, at), has(level.flags, TTL)
  return H.due <= now and not H.hash
end

-- A move must not read a record by definitions that it is not laid out by. `from`: the policy that the
-- record names, where it is at hand.
local function check_layout(level, from)
  local old, size = level.parsed, #level.rec + 1
  if size < old.tail or size > old.tail and not has_more(level.flags) or from and from.layout ~= old.layout then
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
    level.parsed = implied.laid_out(level, move[3], extra.p)
    return "", ""
  end
  local parsed = implied.laid_out(level, level.fp, extra.p)
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

-- As find_policies, of a record that changes may wait in: those that are due come first. Returns what is due
-- besides (nil: nothing is missing of it).
local function find_late(i, level, context, extra, mover, now)
  local offered = extra.m and extra.m[i]
  local reading = offered and offered[level.fp] and offered[level.fp][3] or level.fp
  level.parsed = policy.get(reading, extra.p)
  if not level.parsed then
    return "", reading
  elseif reading ~= level.fp then
    check_layout(level, policy.get(level.fp, extra.p))
  end
  level.parsed = implied.laid_out(level, reading, extra.p)
  record.unpack_variable(level)
  local due = change.due(level.var, now)
  if not due then
    return find_policies(i, level, context, extra, mover)
  end
  local fp, missing
  if level.rev <= context.rev then
    fp, missing = change.steps(due, extra.c and extra.c[i], level.fp, extra.p)
  end
  if not fp then
    return "", "", change.row(i, level, due)
  elseif missing ~= "" then
    return "", missing
  end
  level.steps, level.fp = due, fp
  if mover or i == 1 and context.join and not due[#due].to.groups[context.join] then
    local move = offered and offered[fp]
    if not move then
      return char(i) .. fp .. spack("<I4", context.rev), ""
    end
    level.to = policy.get(move[4], extra.p)
    return "", level.to and "" or move[4]
  end
  return "", ""
end

-- What few records need: overrides to read, a move to make, a record of first sight.
local function settle(level, context, now, manual, mover)
  local parsed = level.parsed -- of a record: by which it is read
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
  if has_more(level.flags) then
    record.read_variable(level, context.rev, level.seen, now)
  end
  if mover then
    mover(level, level.to, now)
  elseif level.to then
    local same = level.to == (parsed.base or parsed) and level.rev == context.rev and not level.steps
    level.joins = level == levels[1] and context.join and not level.parsed.groups[context.join]
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
local function open_records(keys, values, count, context, extra, now, manual, mover)
  local plain = context.plain and not (mover or extra.m)
  local stale, need, holds, settled, late, due = "", "", "", true, false, nil
  for i = 1, count do
    local rec, level = values[i], levels[i]
    level.key, level.rec, level.parsed, level.shape = keys[i], rec, nil, nil
    level.var, level.effective, level.to, level.holds, level.steps = nil, nil, nil, nil, nil
    level.news, level.grants, level.draws, level.joins = nil, nil, false, nil
    level.fresh, level.moved, level.settled = false, false, false
    if rec then
      if #rec < HEADER then
        unreadable(rec)
      end
      local version, flags, fp, rev, seen = sunpack(HEAD, rec)
      if version ~= LAYOUT then
        error("METERD-LAYOUT record of layout " .. version, 0)
      end
      level.flags, level.fp, level.rev, level.seen = flags, fp, rev, seen
      if seen > now then
        now = seen
      end
      if flags % 4 >= VAR then
        late = true -- what it needs depends on the instant, which the others have a say in
      elseif plain and rev >= context.rev then -- nearly always
        local parsed = implied.laid_out(level, fp, extra.p)
        level.parsed = parsed
        if not parsed then
          need = need .. fp
        end
      else
        local behind, missing = find_policies(i, level, context, extra, mover)
        stale, need = stale .. behind, need .. missing
      end
      if has_more(flags) or level.to then
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
  for i = 1, late and count or 0 do
    local level = levels[i]
    if level.rec and level.flags % 4 >= VAR then
      local behind, missing, row = find_late(i, level, context, extra, mover, now)
      stale, need = stale .. behind, need .. missing
      if row then
        due = due or {}
        due[#due + 1] = row
      end
    end
  end
  if stale ~= "" then
    return nil, STATUS_STALE .. stale, now
  elseif due then
    return nil, STATUS_DUE .. mpack(due), now
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
