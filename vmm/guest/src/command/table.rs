//! Which commands there are.

use super::{Call, Error, hashes, keys, lists, server, sets, sorted, strings};

/// A command.
pub(super) struct Command {
    pub(super) name: &'static str,
    packed: u128,
    /// Arguments with the name: that many, or if negative at least that many.
    arity: i8,
    /// Whether it may make the store larger.
    pub(super) grows: bool,
    pub(super) run: fn(&mut Call<'_>) -> Result<(), Error>,
}

impl Command {
    pub(super) fn accepts(&self, arguments: usize) -> bool {
        let least = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { arguments >= least } else { arguments == least }
    }
}

/// A name in lower case as a number whose order is the order of names. Zero if it is too long, or has a
/// zero byte, which no command's name has.
const fn pack(name: &[u8]) -> u128 {
    if name.len() > 16 {
        return 0;
    }
    let mut packed = [0; 16];
    let mut i = 0;
    while i < name.len() {
        if name[i] == 0 {
            return 0;
        }
        packed[i] = name[i].to_ascii_lowercase();
        i += 1;
    }
    u128::from_be_bytes(packed)
}

/// The command of that name, in any case.
pub(super) fn find(name: &[u8]) -> Option<&'static Command> {
    let packed = pack(name);
    COMMANDS.binary_search_by(|command| command.packed.cmp(&packed)).ok().map(|index| &COMMANDS[index])
}

const fn reads(name: &'static str, arity: i8, run: fn(&mut Call<'_>) -> Result<(), Error>) -> Command {
    Command { name, packed: pack(name.as_bytes()), arity, grows: false, run }
}

const fn grows(name: &'static str, arity: i8, run: fn(&mut Call<'_>) -> Result<(), Error>) -> Command {
    Command { name, packed: pack(name.as_bytes()), arity, grows: true, run }
}

/// In order of their names.
pub(super) static COMMANDS: &[Command] = &[
    grows("append", 3, strings::append),
    reads("client", -2, server::client),
    reads("command", -1, server::command),
    reads("config", -2, server::config),
    reads("dbsize", 1, keys::dbsize),
    reads("debug", -2, server::debug),
    grows("decr", 2, strings::decr),
    grows("decrby", 3, strings::decrby),
    reads("del", -2, keys::del),
    reads("echo", 2, server::echo),
    reads("exists", -2, keys::exists),
    reads("expire", 3, keys::expire),
    reads("flushall", -1, keys::flush),
    reads("flushdb", -1, keys::flush),
    reads("get", 2, strings::get),
    reads("getdel", 2, strings::getdel),
    reads("getrange", 4, strings::getrange),
    grows("getset", 3, strings::getset),
    reads("hdel", -3, hashes::hdel),
    reads("hello", -1, server::hello),
    reads("hexists", 3, hashes::hexists),
    reads("hget", 3, hashes::hget),
    reads("hgetall", 2, hashes::hgetall),
    grows("hincrby", 4, hashes::hincrby),
    reads("hkeys", 2, hashes::hkeys),
    reads("hlen", 2, hashes::hlen),
    reads("hmget", -3, hashes::hmget),
    grows("hmset", -4, hashes::hmset),
    grows("hset", -4, hashes::hset),
    reads("hvals", 2, hashes::hvals),
    grows("incr", 2, strings::incr),
    grows("incrby", 3, strings::incrby),
    reads("info", -1, server::info),
    reads("keys", 2, keys::keys),
    reads("lindex", 3, lists::lindex),
    reads("llen", 2, lists::llen),
    reads("lpop", -2, lists::lpop),
    grows("lpush", -3, lists::lpush),
    reads("lrange", 4, lists::lrange),
    reads("mget", -2, strings::mget),
    grows("mset", -3, strings::mset),
    reads("persist", 2, keys::persist),
    reads("pexpire", 3, keys::pexpire),
    reads("ping", -1, server::ping),
    reads("pttl", 2, keys::pttl),
    reads("quit", -1, server::quit),
    reads("rpop", -2, lists::rpop),
    grows("rpush", -3, lists::rpush),
    grows("sadd", -3, sets::sadd),
    reads("scard", 2, sets::scard),
    reads("select", 2, server::select),
    grows("set", -3, strings::set),
    grows("setex", 4, strings::setex),
    grows("setnx", 3, strings::setnx),
    reads("shutdown", -1, server::shutdown),
    reads("sismember", 3, sets::sismember),
    reads("smembers", 2, sets::smembers),
    reads("spop", -2, sets::spop),
    reads("srem", -3, sets::srem),
    reads("strlen", 2, strings::strlen),
    reads("tandem.digest", 1, server::digest),
    reads("time", 1, server::time),
    reads("ttl", 2, keys::ttl),
    reads("type", 2, keys::type_of),
    reads("unlink", -2, keys::del),
    grows("zadd", -4, sorted::zadd),
    reads("zcard", 2, sorted::zcard),
    grows("zincrby", 4, sorted::zincrby),
    reads("zpopmax", -2, sorted::zpopmax),
    reads("zpopmin", -2, sorted::zpopmin),
    reads("zrange", -4, sorted::zrange),
    reads("zrank", 3, sorted::zrank),
    reads("zrem", -3, sorted::zrem),
    reads("zscore", 3, sorted::zscore),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_every_command_is_found() {
        assert!(COMMANDS.is_sorted_by(|left, right| left.packed < right.packed));
        for command in COMMANDS {
            assert_eq!(find(command.name.to_ascii_uppercase().as_bytes()).unwrap().name, command.name);
        }
        assert!(find(b"").is_none());
        assert!(find(b"get\0").is_none());
        assert!(find(&[b'x'; 17]).is_none());
    }
}
