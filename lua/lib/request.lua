-- What comes with every call that opens a record: the caller's view of the catalog, and what a repeated
-- call brings along.
-- @gives request contexts

local ABSENT = "\0\0\0\0\0\0\0\0"
local NOTHING = { behind = 0 }

local request = {}
local contexts, context_count = {}, 0 -- parsed ones, at most 64

-- The caller's view of the catalog: revision, the policy of a root's first sight (8 zero bytes: none),
-- and either the group that `join` asks for or "!": records here follow exactly that policy.
function request.context(text)
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
  known.plain = rest == ""
  if known.pinned and not known.first then
    bad("context: '!' goes with a policy")
  end
  if context_count >= 64 then
    for old in pairs(contexts) do
      contexts[old] = nil
    end
    context_count = 0
  end
  contexts[text], context_count = known, context_count + 1
  return known
end

local function is_level(value)
  return value == 1 or value == 2 or value == 3 or value == 4
end

-- {level = {from .. group = {at, to, pools}}} of {{level, from, group, at, to, pools}, ...}.
local function read_steps(list)
  local steps = {}
  for _, step in ipairs(type(list) == "table" and list or { false }) do
    local level, from, group, at, to, names = nil, nil, nil, nil, nil, nil
    if type(step) == "table" and #step == 6 then
      level, from, group, at, to, names = spread(step)
    end
    local texts = type(from) == "string" and type(group) == "string" and type(to) == "string"
    if not (texts and is_level(level) and #from == 8 and #to == 8 and find(group, "^[%w_.-]+$"))
      or type(at) ~= "number" or type(names) ~= "string" then
      bad("extra: a step is level, from, group, at, to, pools")
    end
    local pools = {}
    for _, name in ipairs(names ~= "" and split_names(names) or {}) do
      pools[name] = true
    end
    steps[level] = steps[level] or {}
    steps[level][from .. group] = { at = at, to = to, pools = pools }
  end
  return steps
end

-- What a repeated call brings along: {p = {policy name = bytes}, m = {{level, from, old, to}, ...},
-- c = {{level, from, group, at, to, pools}, ...}, h = {level, ...}, e = 1}. The keys of these levels' holds stand at
-- the end of KEYS, two for each; with e three more come after them: events, outbox and index of the partition.
-- `behind`: how many keys that makes.
-- A move says: the record of that level, if laid out by `from`, is read by the definitions of `old` and
-- becomes one of `to`. A level may be offered several, for what its record may have become. A step: the change of
-- `group` that is due at `at` in a record laid out by `from` makes it one of `to`; `pools`: those of the plan.
function request.extra(text)
  if text == "" then
    return NOTHING
  end
  local ok, extra = true, opened[text]
  if not extra then
    ok, extra = pcall(munpack, text)
  end
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
      if type(move) ~= "table" or #move ~= 4 or not is_level(move[1]) then
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
  if extra.c ~= nil then
    extra.c = read_steps(extra.c)
  end
  if extra.h ~= nil then
    local before = 0
    if type(extra.h) ~= "table" or #extra.h < 1 or #extra.h > 4 then
      bad("extra: holds are a list of levels")
    end
    for _, level in ipairs(extra.h) do
      if not is_level(level) or level <= before then
        bad("extra: holds are a list of levels, the first one first")
      end
      before = level
    end
  end
  if extra.e ~= nil and extra.e ~= 1 then
    bad("extra: e is 1, or not there")
  end
  extra.behind = 2 * (extra.h and #extra.h or 0) + (extra.e and 3 or 0)
  return extra
end
