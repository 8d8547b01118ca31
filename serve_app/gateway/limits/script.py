"""The limiter's Lua script: the semantics of memory.py, run by Redis as one step.

Numbers are doubles, exact below 2**53, and are written with `%.0f`, since Lua's own form keeps 14 digits only.
Keys: the buckets (a hash), what each open request has charged (a hash: `requests tokens`), and when that ends
(a sorted set). All three expire when the buckets are full and no request is open: then they say nothing.
"""

LUA = """
local UNITS = 60000
local buckets, holds, leases = KEYS[1], KEYS[2], KEYS[3]
local operation, now, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number) return string.format('%.0f', number) end

local function load(name)
  local found = redis.call('HMGET', buckets, name .. ':limit', name .. ':units', name .. ':at')
  if not found[1] then return nil end
  return { limit = tonumber(found[1]), units = tonumber(found[2]), at = tonumber(found[3]) }
end

local function refill(bucket)
  local missing = bucket.limit * UNITS - bucket.units
  local added = math.max(0, now - bucket.at) * bucket.limit
  bucket.units = bucket.units + math.min(missing, added)
  bucket.at = now
end

local function add(bucket, amount)
  if not bucket then return end
  refill(bucket)
  bucket.units = math.min(bucket.limit * UNITS, bucket.units + amount * UNITS)
end

local function refilled(name, limit)
  if not limit then
    redis.call('HDEL', buckets, name .. ':limit', name .. ':units', name .. ':at')
    return nil
  end
  local bucket = load(name)
  if not bucket then return { limit = limit, units = limit * UNITS, at = now } end
  refill(bucket)
  local full = bucket.units == bucket.limit * UNITS
  bucket.limit = limit
  bucket.units = full and limit * UNITS or math.min(limit * UNITS, bucket.units)
  return bucket
end

local function until_full(bucket)
  return bucket and math.ceil((bucket.limit * UNITS - bucket.units) / bucket.limit) or 0
end

local function save(name, bucket)
  if not bucket then return end
  redis.call('HSET', buckets, name .. ':limit', whole(bucket.limit),
    name .. ':units', whole(bucket.units), name .. ':at', whole(bucket.at))
end

local function live_for(ms)
  for _, key in ipairs(KEYS) do
    if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, whole(ms)) end
  end
end

local function store(requests, tokens)
  save('requests', requests)
  save('tokens', tokens)
  live_for(math.max(lease_ms, until_full(requests), until_full(tokens)))
end

local function drop(request)
  redis.call('HDEL', holds, request)
  redis.call('ZREM', leases, request)
end

local function hold_of(request)
  local found = redis.call('HGET', holds, request)
  if not found then return nil end
  local requests, tokens = string.match(found, '(%d+) (%d+)')
  return { requests = tonumber(requests), tokens = tonumber(tokens) }
end

local function keep(request, hold)
  redis.call('HSET', holds, request, whole(hold.requests) .. ' ' .. whole(hold.tokens))
end

for _, request in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', whole(now))) do drop(request) end

if operation == 'renew' then
  for index = 4, #ARGV do
    if redis.call('ZSCORE', leases, ARGV[index]) then
      redis.call('ZADD', leases, whole(now + lease_ms), ARGV[index])
    end
  end
  live_for(lease_ms)
  return nil
end

local request = ARGV[4]
local hold = hold_of(request)

if operation == 'settle' or operation == 'release' then
  if not hold then return nil end
  local requests, tokens = load('requests'), load('tokens')
  if operation == 'settle' then
    add(tokens, hold.tokens - tonumber(ARGV[5]))
  else
    add(requests, hold.requests)
    add(tokens, hold.tokens)
  end
  drop(request)
  store(requests, tokens)
  return nil
end

local request_cost, token_cost = tonumber(ARGV[5]), tonumber(ARGV[6])
local concurrent = tonumber(ARGV[9])
local requests, tokens = refilled('requests', tonumber(ARGV[7])), refilled('tokens', tonumber(ARGV[8]))
local slots = redis.call('ZCARD', leases) - (hold and 1 or 0)
local before = { requests and requests.units or 0, tokens and tokens.units or 0 }

local function short(bucket, cost) return bucket and cost > 0 and bucket.units < cost * UNITS end

if short(requests, request_cost) or short(tokens, token_cost) or (concurrent and slots >= concurrent) then
  if hold then
    add(requests, hold.requests)
    hold.requests = 0
    keep(request, hold)
    if hold.tokens == 0 then drop(request) end
  end
else
  hold = hold or { requests = 0, tokens = 0 }
  if requests then
    add(requests, -request_cost)
    hold.requests = hold.requests + request_cost
  end
  if tokens then
    add(tokens, -token_cost)
    hold.tokens = hold.tokens + token_cost
  end
  keep(request, hold)
  redis.call('ZADD', leases, whole(now + lease_ms), request)
end
store(requests, tokens)
return { before[1], before[2], slots, requests and requests.units or 0, tokens and tokens.units or 0 }
"""
