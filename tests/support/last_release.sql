-- A database that the code of 59bad7e has made: two responses, a music job, what a token has used.
BEGIN TRANSACTION;
CREATE TABLE music_jobs (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        started_at INTEGER,
        finished_at INTEGER,
        expires_at INTEGER NOT NULL,
        backend TEXT,
        file TEXT,
        result BLOB,
        error BLOB
    ) STRICT;
INSERT INTO music_jobs VALUES('music-0123456789abcdef01234567','bot','succeeded',1,NULL,NULL,10000000000,'b','bot.mp3',NULL,NULL);
CREATE INDEX music_jobs_expiry ON music_jobs (expires_at);
CREATE INDEX music_jobs_files ON music_jobs (file, owner);
CREATE INDEX music_jobs_owners ON music_jobs (owner, created_at);
CREATE TABLE request_counts (
        caller TEXT NOT NULL,
        slot INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        PRIMARY KEY (caller, slot)
    ) STRICT, WITHOUT ROWID;
INSERT INTO request_counts VALUES('bot',6912172800,1);
CREATE TABLE responses (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        input BLOB NOT NULL,
        response BLOB NOT NULL
    ) STRICT;
INSERT INTO responses VALUES('resp_bot','bot',11795799887,72,X'7B226974656D73223A5B7B226964223A22696E5F626F74227D5D7D',X'7B226964223A22726573705F626F74222C226F7574707574223A5B7B226964223A226D73675F626F74227D5D7D');
INSERT INTO responses VALUES('resp_shown','725e7dd4',11795799887,61,X'7B226974656D73223A5B5D7D',X'7B226964223A22726573705F73686F776E222C226F7574707574223A5B7B226964223A226D73675F73686F776E227D5D7D');
CREATE TRIGGER responses_added AFTER INSERT ON responses
        BEGIN UPDATE responses_total SET bytes = bytes + new.bytes; END;
CREATE INDEX responses_expiry ON responses (expires_at);
CREATE TRIGGER responses_removed AFTER DELETE ON responses
        BEGIN UPDATE responses_total SET bytes = bytes - old.bytes; END;
CREATE TABLE responses_total (bytes INTEGER NOT NULL) STRICT;
INSERT INTO responses_total VALUES(133);
CREATE TABLE schema_info (min_reader INTEGER NOT NULL) STRICT;
INSERT INTO schema_info VALUES(1);
CREATE TABLE token_usage (
        day INTEGER NOT NULL,
        caller TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (day, caller)
    ) STRICT, WITHOUT ROWID;
INSERT INTO token_usage VALUES(20000,'bot',100);
PRAGMA user_version=4;
COMMIT TRANSACTION;
