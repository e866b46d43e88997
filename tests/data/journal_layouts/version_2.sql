CREATE TABLE aliases ( name VARCHAR(64) NOT NULL, alias VARCHAR(16) NOT NULL, identity VARCHAR(64) NOT NULL, digest VARCHAR(64) NOT NULL, optimize VARCHAR(64) NOT NULL, judged_identity VARCHAR(64) NOT NULL, judged_digest VARCHAR(64) NOT NULL, run VARCHAR(32) NOT NULL, created FLOAT NOT NULL, PRIMARY KEY (name, alias) )

CREATE TABLE deliveries ( target VARCHAR(200) NOT NULL, "key" VARCHAR(200) NOT NULL, run VARCHAR(32) NOT NULL, status VARCHAR(16) NOT NULL, attempts INTEGER NOT NULL, error TEXT NOT NULL, receipt TEXT NOT NULL, created FLOAT NOT NULL, tried FLOAT NOT NULL, PRIMARY KEY (target, "key") )

CREATE INDEX deliveries_by_run ON deliveries (run)

CREATE INDEX deliveries_by_status ON deliveries (status, created)

CREATE TABLE file_digests ( path TEXT NOT NULL, stat TEXT NOT NULL, digest VARCHAR(64) NOT NULL, PRIMARY KEY (path) )

CREATE TABLE leases ( fingerprint VARCHAR(64) NOT NULL, fence INTEGER NOT NULL, owner TEXT NOT NULL, run VARCHAR(32) NOT NULL, stage VARCHAR(16) NOT NULL, heartbeat INTEGER NOT NULL, PRIMARY KEY (fingerprint) )

CREATE TABLE meta ( "key" VARCHAR(32) NOT NULL, value TEXT NOT NULL, PRIMARY KEY ("key") )

CREATE TABLE results ( fingerprint VARCHAR(64) NOT NULL, stage VARCHAR(16) NOT NULL, name VARCHAR(64) NOT NULL, digest VARCHAR(64) NOT NULL, files TEXT NOT NULL, result TEXT NOT NULL, ingredients TEXT NOT NULL, inputs TEXT NOT NULL, run VARCHAR(32) NOT NULL, created FLOAT NOT NULL, seconds FLOAT NOT NULL, PRIMARY KEY (fingerprint) )

CREATE INDEX results_by_stage ON results (name, stage, created)

CREATE TABLE runs ( run VARCHAR(32) NOT NULL, name VARCHAR(64) NOT NULL, recipe_path TEXT NOT NULL, status VARCHAR(16) NOT NULL, started FLOAT NOT NULL, finished FLOAT, lineage TEXT NOT NULL, recipe TEXT NOT NULL, overrides TEXT NOT NULL, bundle VARCHAR(64) NOT NULL, blessed BOOLEAN NOT NULL, endpoint TEXT NOT NULL, report TEXT NOT NULL, error TEXT NOT NULL, owner TEXT NOT NULL, tracked BOOLEAN NOT NULL, PRIMARY KEY (run) )

CREATE INDEX runs_by_name ON runs (name, started)

CREATE TABLE steps ( run VARCHAR(32) NOT NULL, position INTEGER NOT NULL, stage VARCHAR(16) NOT NULL, action VARCHAR(8) NOT NULL, reason TEXT NOT NULL, fingerprint VARCHAR(64) NOT NULL, status VARCHAR(16) NOT NULL, seconds FLOAT NOT NULL, digest VARCHAR(64) NOT NULL, result TEXT, error TEXT NOT NULL, PRIMARY KEY (run, position), FOREIGN KEY(run) REFERENCES runs (run) )

CREATE INDEX steps_by_fingerprint ON steps (fingerprint)
