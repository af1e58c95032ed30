//! A small guest in component text, which scores replicas by how many sequences they run.

/// A guest with code of its own at the start of some functions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    /// Runs first in `score-replicas`.
    pub(super) score: &'static str,
    /// Runs first in `init`.
    pub(super) init: &'static str,
    /// 1 makes `self-test` fail.
    pub(super) self_test: u32,
    /// Added to every score, to tell generations apart.
    pub(super) bias: u32,
    /// Stands before everything else in the component.
    pub(super) import: &'static str,
    /// The same in its module, whose first argument is called `host`.
    pub(super) core_import: &'static str,
    /// What `host` is.
    pub(super) with: &'static str,
    /// JSON Schema of its configuration.
    pub(super) schema: &'static str,
    /// Of `drystone:policy`.
    pub(super) version: &'static str,
}

pub(super) const GOOD: Guest = Guest {
    score: "",
    init: "",
    self_test: 0,
    bias: 0,
    import: "",
    core_import: "",
    with: "",
    schema: "",
    version: "0.1.0",
};

impl Guest {
    /// The component.
    pub(super) fn wasm(&self) -> Vec<u8> {
        wat::parse_str(self.text()).expect("the text of the guest is right")
    }

    fn text(&self) -> String {
        TEXT.replace("$SCORE", self.score)
            .replace("$INIT", self.init)
            .replace("$SELF_TEST", &self.self_test.to_string())
            .replace("$BIAS", &self.bias.to_string())
            .replace("$IMPORT", self.import)
            .replace("$CORE_IMPORT", self.core_import)
            .replace("$WITH", self.with)
            .replace("$SCHEMA_BYTES", &format!("{:?}", self.schema))
            .replace("$SCHEMA_LENGTH", &self.schema.len().to_string())
            .replace("$VERSION", self.version)
    }
}

/// Addresses below 1024 hold what never changes; 2048 and on is for arguments and answers.
const TEXT: &str = r#"(component
  $IMPORT
  (core module $m
    $CORE_IMPORT
    (memory (export "memory") 1)
    (data (i32.const 0) "guest1.0bad")
    (data (i32.const 64)
      "\00\00\00\00\05\00\00\00" "\05\00\00\00\03\00\00\00"
      "\00\02\00\00" "\00\00\00\00" "\00\00\00\00\00\00\00\00")
    (data (i32.const 512) $SCHEMA_BYTES)
    (global $next (mut i32) (i32.const 2048))
    (func $realloc (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    (func (export "done") (param i32) (global.set $next (i32.const 2048)))
    (func (export "describe") (result i32)
      (i32.store (i32.const 84) (i32.const $SCHEMA_LENGTH))
      (i32.const 64))
    (func (export "init") (param i32 i32) (result i32)
      $INIT
      (i64.store (i32.const 128) (i64.const 0))
      (i32.const 128))
    (func (export "self-test") (result i32)
      (i32.store (i32.const 128) (i32.const $SELF_TEST))
      (i32.store (i32.const 132) (i32.const 8))
      (i32.store (i32.const 136) (i32.const 3))
      (i32.const 128))
    (func (export "score") (param i32 i32 i64 i32 i32 i32) (result i32)
      (local $i i32) (local $out i32) (local $rows i32)
      $SCORE
      (local.set $rows (i32.div_u (local.get 5) (local.get 3)))
      (local.set $out (call $realloc (i32.const 0) (i32.const 0) (i32.const 4)
        (i32.mul (local.get $rows) (i32.const 4))))
      (block $end (loop $next
        (br_if $end (i32.ge_u (local.get $i) (local.get $rows)))
        (f32.store (i32.add (local.get $out) (i32.mul (local.get $i) (i32.const 4)))
          (f32.add (f32.const $BIAS) (f32.load (i32.add (local.get 4)
            (i32.mul (local.get $i) (i32.mul (local.get 3) (i32.const 4)))))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
      (i32.store (i32.const 128) (local.get $out))
      (i32.store (i32.const 132) (local.get $rows))
      (i32.const 128)))
  (core instance $i (instantiate $m $WITH))
  (alias core export $i "memory" (core memory $memory))
  (alias core export $i "realloc" (core func $realloc))
  (alias core export $i "done" (core func $done))
  (alias core export $i "describe" (core func $describe))
  (alias core export $i "init" (core func $init))
  (alias core export $i "self-test" (core func $self-test))
  (alias core export $i "score" (core func $score))

  (type $description (record (field "name" string) (field "version" string)
    (field "config-schema" string) (field "headers" (list string))))
  (type $setup (record (field "hold-back" u32)))
  (func $describe (result $description) (canon lift (core func $describe) (memory $memory)))
  (func $init (param "config" string) (result (result $setup (error string)))
    (canon lift (core func $init) (memory $memory) (realloc $realloc)))
  (func $self-test (result (result (error string)))
    (canon lift (core func $self-test) (memory $memory)))
  (component $plugin
    (type $d (record (field "name" string) (field "version" string)
      (field "config-schema" string) (field "headers" (list string))))
    (type $s (record (field "hold-back" u32)))
    (import "d" (type $d1 (eq $d)))
    (import "s" (type $s1 (eq $s)))
    (import "describe" (func $describe (result $d1)))
    (import "init" (func $init (param "config" string) (result (result $s1 (error string)))))
    (import "self-test" (func $self-test (result (result (error string)))))
    (export $d2 "description" (type $d))
    (export $s2 "setup" (type $s))
    (export "describe" (func $describe) (func (result $d2)))
    (export "init" (func $init)
      (func (param "config" string) (result (result $s2 (error string)))))
    (export "self-test" (func $self-test)))
  (instance $plugins (instantiate $plugin
    (with "d" (type $description)) (with "s" (type $setup))
    (with "describe" (func $describe)) (with "init" (func $init))
    (with "self-test" (func $self-test))))
  (export "drystone:policy/plugin@$VERSION" (instance $plugins))

  (type $demand (record (field "prompt-tokens" u32) (field "max-tokens" u32)
    (field "affinity" u64)))
  (type $table (record (field "columns" u32) (field "numbers" (list f32))))
  (func $score (param "demand" $demand) (param "replicas" $table) (result (list f32))
    (canon lift (core func $score) (memory $memory) (realloc $realloc) (post-return $done)))
  (component $scorer
    (type $d (record (field "prompt-tokens" u32) (field "max-tokens" u32)
      (field "affinity" u64)))
    (type $t (record (field "columns" u32) (field "numbers" (list f32))))
    (import "d" (type $d1 (eq $d)))
    (import "t" (type $t1 (eq $t)))
    (import "score" (func $score
      (param "demand" $d1) (param "replicas" $t1) (result (list f32))))
    (export $d2 "demand" (type $d))
    (export $t2 "table" (type $t))
    (export "score-replicas" (func $score)
      (func (param "demand" $d2) (param "replicas" $t2) (result (list f32)))))
  (instance $scorers (instantiate $scorer
    (with "d" (type $demand)) (with "t" (type $table)) (with "score" (func $score))))
  (export "drystone:policy/score-replicas@$VERSION" (instance $scorers)))"#;
