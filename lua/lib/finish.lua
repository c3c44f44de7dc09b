-- Holds as the operations make and end them.
-- @gives finish

local finish = {}

-- The id of a hold.
function finish.id(text)
  if #text < 1 or #text > 128 then
    bad("hold: an id of 1 to 128 bytes")
  end
  return text
end

-- Digits of a time to live, in ms.
function finish.ttl(text)
  if not find(text, "^%d+$") or #text > 11 or tonumber(text) < 1 or tonumber(text) > 366 * DAY then
    bad("ttl: 1 ms to 366 days, in ms")
  end
  return tonumber(text)
end

function finish.index(list, wanted)
  for i, value in ipairs(list) do
    if value == wanted then
      return i
    end
  end
  return nil
end

local function same(one, other)
  return concat(one.names, ",") == concat(other.names, ",") and concat(one.amounts, ",") == concat(other.amounts, ",")
end

-- The open holds of that id: {level = entry}, and any one of them (nil: there is none). What a level above
-- holds under this id may be of another subject.
function finish.find(count, id)
  local entries, any = {}, nil
  for i = count, 1, -1 do
    local entry = hold.find(levels[i], id)
    if entry and (not any or same(entry, any)) then
      entries[i], any = entry, entry
    end
  end
  return entries, any
end

-- Whether what is stored is a commit, on the path of this one, of just these amounts, whichever way it was said.
local function committed(stored, names, packed, below, now)
  local found = names ~= "" and op.read(stored, now)
  if not found or found.verb ~= COMMITTED or found.below ~= below or #found.packed ~= #packed then
    return false
  end
  local theirs = split_names(found.names)
  for j, name in ipairs(split_names(names)) do
    local at = finish.index(theirs, name)
    if not at or sub(found.packed, 8 * at - 7, 8 * at) ~= sub(packed, 8 * j - 7, 8 * j) then
      return false
    end
  end
  return true
end

-- Reads as charge.read does, for a call that ends a hold: one that is open counts before the end of another
-- of its id. Returns what that does, and what finish.find does.
function finish.read(keys, args, id, values, instant)
  local count, now, end_key, stored = charge.read(keys, args, values, instant, true)
  if not count then
    return nil, now
  end
  finish.check_pairs(count)
  local entries, any = finish.find(count, id)
  local answer = not any and op.find(stored, args[5], now)
  if answer == STATUS_CONFLICT and committed(stored, args[3], args[4], op.below(keys[1], keys[count]), now) then
    answer = op.find(stored, stored, now)
  end
  if answer then
    return nil, answer
  end
  return count, now, end_key, entries, any
end

-- Whether some level that is charged has no room for another hold, and whether one has this id already.
function finish.full(count, id)
  local full, known, k = false, false, 0
  for i = 1, count do
    local H, shape = levels[i].holds, levels[i].shape
    local targets, charged = shape and shape.count or 0, false
    for t = 1, targets do
      charged = charged or hands[k + t].cost > 0
    end
    k = k + targets
    if H and H.due then
      full = full or charged and hold.count(levels[i]) >= MOST_HOLDS
      known = known or hold.find(levels[i], id) ~= nil
    end
  end
  return full, known
end

-- Makes the hold out of what was just charged: an entry for every level that has a part in it.
function finish.put(count, id, expiry, names, amounts_held, now)
  local k = 0
  for i = 1, count do
    local level = levels[i]
    local shape = level.shape
    local charged = {}
    for t = 1, shape and shape.count or 0 do
      local target, s = shape[t], hands[k + t]
      local L = s.limit
      if s.applied > 0 then
        local factors = hold.factors(target, #names)
        charged[#charged + 1] = {
          name = L.name, kind = L.kind, gen = hold.generation(level, L.name), mark = L:mark(now, s),
          over = L.kind == POOL and s.beyond or 0, factors = factors, sources = s.taken,
        }
        if s.taken then
          grants.hold(level, s.taken)
        end
        if L.kind == POOL and L.bill > 0 then
          charged[#charged].bill, charged[#charged].fin = L.bill, s.fin
        end
      end
    end
    k = k + (shape and shape.count or 0)
    if #charged > 0 then
      local tallied = {}
      for j = 1, #names do
        tallied[j] = 0
      end
      local entry = { expiry = expiry, names = names, amounts = amounts_held, tallied = tallied, parts = charged }
      finish.keep(i, id, entry, now)
    end
  end
end

-- Stores an entry, new or changed, with the next write; `due` follows.
function finish.keep(i, id, entry, now, others)
  local level = levels[i]
  local H = level.holds
  H.put = { id = id, expiry = entry.expiry, bytes = hold.encode(entry) }
  local due = H.due
  if others then
    due = hold.next_due(H, now, id)
  end
  due = due and min(due, entry.expiry) or entry.expiry
  if H.due and due < H.due then
    for _, part in ipairs(entry.parts) do
      if part.bill then
        bill.news(level).list = due -- what it keeps is billed when it ends
      end
    end
  end
  -- A record that is not to stay has to outlive its holds.
  local soon = has(level.flags, TTL) and level.expires < entry.expiry + level.parsed.forgettable
  if due ~= H.due or soon or others and level.settled then -- what came by itself is told with it
    store.put_due(level, due, slices[i], now)
    slices[i] = nil
  end
end

-- Settles the hold in every level: `kept` of its amounts stay charged, the rest goes back.
function finish.settle(count, id, entries, kept, now)
  local s = new_hand()
  for i = 1, count do
    local level, entry = levels[i], entries[i]
    if entry then
      local H = level.holds
      local changed = hold.give_back(level, entry, kept, now, s)
      local due = H.due
      H.done = id
      if entry.expiry <= due then
        due = hold.next_due(H, now, id)
      end
      if changed or due ~= H.due or level.news then -- or only what it kept is billed
        store.put_due(level, due, nil, now)
      end
    end
  end
end

-- What a hold keeps charged, limit by limit (of slots: what it took), added to what the call itself applied.
-- Returns it as the shares of charge.sources.
function finish.add_kept(count, entries, kept)
  local k, shares = 0, {}
  for i = 1, count do
    local shape, entry = levels[i].shape, entries[i]
    for t = 1, shape and shape.count or 0 do
      local s = hands[k + t]
      for _, part in ipairs(entry and entry.parts or {}) do
        if part.name == s.limit.name and part.kind == s.limit.kind then
          local units = hold.units(part, kept)
          s.applied = s.applied + units
          if units > 0 then -- what came back of the hold came from `over` first
            local back = hold.units(part, entry.amounts) - units
            local over = max(0, part.over - back)
            local sources = part.sources and grants.first(part.sources, units - over)
            shares[k + t] = { units = units, mark = part.mark, over = over, sources = sources }
          end
        end
      end
    end
    k = k + (shape and shape.count or 0)
  end
  return shares
end

-- The call may touch holds of every level, so it has to name the keys of all.
function finish.check_pairs(count)
  for i = 1, count do
    if not (levels[i].holds and levels[i].holds.hash) then
      bad("extra: holds of every level")
    end
  end
end

-- Splits what was used (`names`, amounts in hand) into what the hold covers, in its order, and what goes
-- beyond it: leaves that in hand, and returns the first, the names that go with the second, and both together
-- as a packed double per name.
function finish.split(entry, names)
  local kept, used, all, packed = {}, {}, {}, {}
  for j, name in ipairs(entry.names) do
    local at = finish.index(names, name)
    used[j] = at and amounts[at] or entry.amounts[j]
    kept[j] = min(used[j], entry.amounts[j])
    packed[j] = spack("<d", used[j])
    used[j], all[j] = used[j] - kept[j], name
  end
  for j, name in ipairs(names) do
    if not finish.index(entry.names, name) then
      used[#used + 1], all[#all + 1] = amounts[j], name
      packed[#packed + 1] = spack("<d", amounts[j])
    end
  end
  for j = 1, #used do
    amounts[j] = used[j]
  end
  return kept, concat(all, ","), concat(packed)
end

-- Changes an open hold in every level by `alter(entry, now)`.
function finish.change(keys, args, id, alter)
  local count, now = charge.read(keys, args)
  if not count then
    return now
  end
  finish.check_pairs(count)
  local entries, any = finish.find(count, id)
  if not any then
    return STATUS_UNKNOWN
  end
  for i = 1, count do
    slices[i] = nil
    if entries[i] then
      alter(entries[i], now)
      finish.keep(i, id, entries[i], now, true)
    else
      levels[i].fresh, levels[i].moved = false, false
    end
  end
  return store.write(count, slices, now) or STATUS_DONE
end
