use super::*;
use proptest::prelude::*;
use std::string::String;

/// Runs lines of `request => reply`; in replies, `|` stands for a line end.
fn script(text: &str) {
    let mut engine = Engine::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
        let (request, expected) = line.split_once(" => ").unwrap();
        let reply = run(&mut engine, request).replace("\r\n", "|");
        assert_eq!(reply, std::format!("{expected}|"), "{request}");
    }
}

#[test]
fn strings() {
    script(
        r"
        SET k v => +OK
        GET k => $1|v
        GET none => $-1
        SET k w NX => $-1
        SET k w XX GET => $1|v
        GET k => $1|w
        SET none x XX => $-1
        SET none x XX GET => $-1
        SET k x NX XX => -ERR syntax error
        SET k x EX 0 => -ERR invalid expire time in 'set' command
        SET k x EX abc => -ERR value is not an integer or out of range
        SET k x EX 9223372036854775807 => -ERR invalid expire time in 'set' command
        SET k x EX => -ERR syntax error
        SET k 10 => +OK
        INCR k => :11
        DECR k => :10
        INCRBY k 5 => :15
        DECRBY k 25 => :-10
        DECRBY k -9223372036854775808 => -ERR decrement would overflow
        SET k 9223372036854775807 => +OK
        INCR k => -ERR increment or decrement would overflow
        INCR new => :1
        SET k abc => +OK
        INCR k => -ERR value is not an integer or out of range
        APPEND k def => :6
        APPEND other xy => :2
        STRLEN k => :6
        STRLEN nothing => :0
        GETRANGE k 1 -2 => $4|bcde
        GETRANGE k 5 2 => $0|
        GETSET k new => $6|abcdef
        SETNX k x => :0
        SETNX k2 x => :1
        MSET a 1 b 2 => +OK
        MSET a 1 b => -ERR wrong number of arguments for 'mset' command
        MGET a b c => *3|$1|1|$1|2|$-1
        GETDEL a => $1|1
        EXISTS a b b => :2
        SETEX a 10 v => +OK
        TTL a => :10
        SETEX a -1 v => -ERR invalid expire time in 'setex' command
        ",
    );
}

#[test]
fn keys() {
    script(
        r"
        MSET aa 1 ab 2 b 3 => +OK
        DBSIZE => :3
        KEYS a* => *2|$2|aa|$2|ab
        TYPE aa => +string
        TYPE none => +none
        EXPIRE aa 100 => :1
        TTL aa => :100
        PTTL aa => :100000
        PERSIST aa => :1
        PERSIST aa => :0
        TTL aa => :-1
        TTL none => :-2
        EXPIRE none 1 => :0
        EXPIRE aa -1 => :1
        EXISTS aa => :0
        PEXPIRE ab 50 => :1
        SET ab x KEEPTTL => +OK
        PTTL ab => :50
        DEL ab b none => :2
        SET x 1 => +OK
        FLUSHALL ASYNC => +OK
        FLUSHDB WHAT => -ERR syntax error
        DBSIZE => :0
        ",
    );
}

#[test]
fn lists() {
    script(
        r"
        RPUSH l a b c => :3
        LPUSH l z y => :5
        LRANGE l 0 -1 => *5|$1|y|$1|z|$1|a|$1|b|$1|c
        LRANGE l -2 100 => *2|$1|b|$1|c
        LRANGE l 3 1 => *0
        LINDEX l -1 => $1|c
        LINDEX l 9 => $-1
        LLEN l => :5
        LPOP l => $1|y
        RPOP l 2 => *2|$1|c|$1|b
        LPOP l 9 => *2|$1|z|$1|a
        EXISTS l => :0
        LPOP l => $-1
        LPOP l 1 => *-1
        LPOP l -1 => -ERR value is out of range, must be positive
        SET s x => +OK
        LPUSH s x => -WRONGTYPE Operation against a key holding the wrong kind of value
        LLEN s => -WRONGTYPE Operation against a key holding the wrong kind of value
        ",
    );
}

#[test]
fn sets_and_hashes() {
    script(
        r"
        SADD s a b a => :2
        SCARD s => :2
        SISMEMBER s a => :1
        SISMEMBER s c => :0
        SPOP s => $1|b
        SREM s a x => :1
        EXISTS s => :0
        SPOP s => $-1
        SPOP s 3 => *0
        SMEMBERS s => *0
        HSET h f 1 g 2 => :2
        HSET h f 3 => :0
        HSET h f => -ERR wrong number of arguments for 'hset' command
        HMSET h x y => +OK
        HGET h f => $1|3
        HGET h none => $-1
        HMGET h f none => *2|$1|3|$-1
        HGETALL h => *6|$1|f|$1|3|$1|g|$1|2|$1|x|$1|y
        HKEYS h => *3|$1|f|$1|g|$1|x
        HVALS h => *3|$1|3|$1|2|$1|y
        HINCRBY h f 4 => :7
        HINCRBY h new 4 => :4
        HINCRBY h x 1 => -ERR hash value is not an integer
        HEXISTS h f => :1
        HLEN h => :4
        HDEL h f g x new none => :4
        EXISTS h => :0
        ",
    );
}

#[test]
fn sorted_sets() {
    script(
        r"
        ZADD z 2 b 1 a => :2
        ZADD z CH 3 a 4 c => :2
        ZADD z NX 9 a 5 d => :1
        ZADD z GT 1 a => :0
        ZADD z XX INCR 1 none => $-1
        ZADD z INCR 1.5 a => $3|4.5
        ZADD z NX XX 1 a => -ERR XX and NX options at the same time are not compatible
        ZADD z GT LT 1 a => -ERR GT, LT, and/or NX options at the same time are not compatible
        ZADD z x a => -ERR value is not a valid float
        ZADD z 1 => -ERR wrong number of arguments for 'zadd' command
        ZADD z 1 a 2 => -ERR syntax error
        ZCARD z => :4
        ZSCORE z a => $3|4.5
        ZRANK z a => :2
        ZRANGE z 0 -1 => *4|$1|b|$1|c|$1|a|$1|d
        ZRANGE z 0 0 WITHSCORES => *2|$1|b|$1|2
        ZINCRBY z 10 b => $2|12
        ZPOPMIN z => *2|$1|c|$1|4
        ZPOPMAX z 2 => *4|$1|b|$2|12|$1|d|$1|5
        ZREM z a x => :1
        EXISTS z => :0
        ZPOPMIN z => *0
        ZADD z inf a => :1
        ZADD z INCR -inf a => -ERR resulting score is not a number (NaN)
        ",
    );
}

#[test]
fn connection_and_server() {
    script(
        r#"
        PING => +PONG
        PING "a b" => $3|a b
        ping a b => -ERR wrong number of arguments for 'ping' command
        ECHO x => $1|x
        SELECT 0 => +OK
        SELECT 1 => -ERR DB index is out of range
        CONFIG GET save => *2|$4|save|$0|
        CONFIG GET nothing => *0
        CONFIG SET save x => -ERR CONFIG SET failed - parameters of this server are fixed
        CONFIG WHAT => -ERR unknown subcommand or wrong number of arguments for 'WHAT'
        COMMAND DOCS => *0
        CLIENT SETINFO LIB-NAME x => +OK
        CLIENT GETNAME => $-1
        CLIENT ID => :1
        HELLO 3 => -NOPROTO unsupported protocol version
        HELLO 2 SETNAME a => *14|$6|server|$5|redis|$7|version|$5|7.0.0|$5|proto|:2|$2|id|:1|$4|mode|$10|standalone|$4|role|$6|master|$7|modules|*0
        NOSUCH a b => -ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b' 
        "" => -ERR unknown command '', with args beginning with: 
        GET => -ERR wrong number of arguments for 'get' command
        TIME => *2|$1|0|$1|0
        TANDEM.DIGEST => $32|00000000000000000000000000000000
        DEBUG SEGFAULT => -ERR unknown subcommand or wrong number of arguments for 'SEGFAULT'
        QUIT => +OK
        "#,
    );
    assert!(run(&mut Engine::new(), "INFO server").contains("redis_version:7.0.0"));
}

#[test]
fn time_passes_only_when_told() {
    let mut engine = Engine::new();
    run(&mut engine, "SET k v PX 100");
    engine.set_time(99_999_999);
    assert_eq!(run(&mut engine, "GET k"), "$1\r\nv\r\n");
    engine.set_time(100_000_000);
    assert_eq!(run(&mut engine, "GET k"), "$-1\r\n");
    assert_eq!(run(&mut engine, "TIME"), "*2\r\n$1\r\n0\r\n$6\r\n100000\r\n");
}

#[test]
fn shutdown_asks_for_power_off_and_answers_nothing() {
    let mut engine = Engine::new();
    assert_eq!(run(&mut engine, "SHUTDOWN NOSAVE"), "");
    assert!(engine.power_off());
}

#[test]
fn a_full_memory_refuses_what_grows_and_serves_the_rest() {
    let mut engine = Engine::with_memory(|| Memory { used: 995, free: 5 });
    assert_eq!(run(&mut engine, "SET k v"), "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
    assert_eq!(run(&mut engine, "GET k"), "$-1\r\n");
    assert_eq!(run(&mut engine, "FLUSHALL"), "+OK\r\n");
}

/// Requests on few keys, so that they meet.
fn request() -> impl Strategy<Value = String> {
    let word = || prop_oneof!["[a-c]", "-?[0-9]{1,3}", "[a-z]{1,4}", Just(String::from("withscores"))];
    let name = proptest::sample::select(
        table::COMMANDS
            .iter()
            .map(|command| command.name)
            .filter(|name| *name != "shutdown")
            .collect::<Vec<_>>(),
    );
    (name, proptest::collection::vec(word(), 0..6))
        .prop_map(|(name, words)| std::format!("{name} {}", words.join(" ")))
}

proptest! {
    #[test]
    fn arbitrary_requests_get_one_whole_reply_each(requests in proptest::collection::vec(request(), 0..60)) {
        let mut engine = Engine::new();
        for request in requests {
            let reply = run(&mut engine, &request);
            prop_assert_eq!(crate::connection::tests::replies_in(reply.as_bytes()), Some(1), "{} {}", request, reply);
        }
    }

    #[test]
    fn empty_collections_do_not_stay(requests in proptest::collection::vec(request(), 0..60)) {
        let mut engine = Engine::new();
        for request in requests {
            run(&mut engine, &request);
            for (key, entry) in engine.store().iter() {
                let empty = match &entry.value {
                    crate::store::Value::Str(_) => false,
                    crate::store::Value::List(list) => list.is_empty(),
                    crate::store::Value::Set(set) => set.is_empty(),
                    crate::store::Value::Hash(hash) => hash.is_empty(),
                    crate::store::Value::Sorted(sorted) => sorted.is_empty(),
                };
                prop_assert!(!empty, "{:?} after {}", key, request);
            }
        }
    }
}
