-- The tables that Trillian 1.8.0's PostgreSQL storage reads and writes for logs, under its names, and the
-- function it queues batches with. Left out are what only pre-ordered logs and the PostgreSQL quota system call.

CREATE TYPE TreeState AS ENUM ('ACTIVE', 'FROZEN', 'DRAINING');
CREATE TYPE TreeType AS ENUM ('LOG', 'MAP', 'PREORDERED_LOG');

CREATE TABLE Trees (
	TreeId                BIGINT PRIMARY KEY,
	TreeState             TreeState NOT NULL,
	TreeType              TreeType NOT NULL,
	DisplayName           VARCHAR(20),
	Description           VARCHAR(200),
	CreateTimeMillis      BIGINT NOT NULL,
	UpdateTimeMillis      BIGINT NOT NULL,
	MaxRootDurationMillis BIGINT NOT NULL,
	Deleted               BOOLEAN,
	DeleteTimeMillis      BIGINT
);

CREATE TABLE TreeControl (
	TreeId                  BIGINT PRIMARY KEY REFERENCES Trees ON DELETE CASCADE,
	SigningEnabled          BOOLEAN NOT NULL,
	SequencingEnabled       BOOLEAN NOT NULL,
	SequenceIntervalSeconds INTEGER NOT NULL
);

-- 256 leaves or inner nodes each, as a protocol buffer.
CREATE TABLE Subtree (
	TreeId    BIGINT NOT NULL REFERENCES Trees ON DELETE CASCADE,
	SubtreeId BYTEA NOT NULL CHECK (length(SubtreeId) <= 255),
	Nodes     BYTEA NOT NULL,
	CONSTRAINT Subtree_pk PRIMARY KEY (TreeId, SubtreeId) -- named in Trillian's ON CONFLICT
);

CREATE TABLE TreeHead (
	TreeId            BIGINT NOT NULL REFERENCES Trees ON DELETE CASCADE,
	TreeHeadTimestamp BIGINT,
	TreeSize          BIGINT,
	RootHash          BYTEA NOT NULL CHECK (length(RootHash) <= 255),
	RootSignature     BYTEA NOT NULL CHECK (length(RootSignature) <= 1024),
	PRIMARY KEY (TreeId, TreeHeadTimestamp)
);

-- Every entry once.
CREATE TABLE LeafData (
	TreeId              BIGINT NOT NULL REFERENCES Trees ON DELETE CASCADE,
	LeafIdentityHash    BYTEA NOT NULL CHECK (length(LeafIdentityHash) <= 255),
	LeafValue           BYTEA NOT NULL,
	ExtraData           BYTEA,
	QueueTimestampNanos BIGINT NOT NULL,
	PRIMARY KEY (TreeId, LeafIdentityHash)
);

-- Where it stands. That an index is given once, whoever gives it, is this primary key.
CREATE TABLE SequencedLeafData (
	TreeId                  BIGINT NOT NULL REFERENCES Trees ON DELETE CASCADE,
	SequenceNumber          BIGINT NOT NULL CHECK (SequenceNumber >= 0),
	LeafIdentityHash        BYTEA NOT NULL CHECK (length(LeafIdentityHash) <= 255),
	MerkleLeafHash          BYTEA NOT NULL CHECK (length(MerkleLeafHash) <= 255),
	IntegrateTimestampNanos BIGINT NOT NULL,
	PRIMARY KEY (TreeId, SequenceNumber),
	FOREIGN KEY (TreeId, LeafIdentityHash) REFERENCES LeafData ON DELETE CASCADE
);
CREATE INDEX SequencedLeafMerkleIdx ON SequencedLeafData (TreeId, MerkleLeafHash);
CREATE INDEX SequencedLeafIdentityIdx ON SequencedLeafData (TreeId, LeafIdentityHash);

-- What waits for a place.
CREATE TABLE Unsequenced (
	TreeId              BIGINT NOT NULL,
	Bucket              INTEGER NOT NULL,
	LeafIdentityHash    BYTEA NOT NULL CHECK (length(LeafIdentityHash) <= 255),
	MerkleLeafHash      BYTEA NOT NULL CHECK (length(MerkleLeafHash) <= 255),
	QueueTimestampNanos BIGINT NOT NULL,
	QueueID             BYTEA UNIQUE CHECK (length(QueueID) <= 32),
	PRIMARY KEY (TreeId, Bucket, QueueTimestampNanos, LeafIdentityHash)
);

-- Queues the rows of the temporary table TempQueueLeaves whose entries are new, and returns the
-- identities of the others. Rows go in by identity, so that two batches cannot wait for each other in a
-- circle; no table is locked, so that the logs of one database do not wait for each other at all.
CREATE FUNCTION queue_leaves() RETURNS SETOF BYTEA LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY
	WITH fresh AS (
		INSERT INTO LeafData (TreeId, LeafIdentityHash, LeafValue, ExtraData, QueueTimestampNanos)
		SELECT t.TreeId, t.LeafIdentityHash, t.LeafValue, t.ExtraData, t.QueueTimestampNanos
		FROM TempQueueLeaves t ORDER BY t.TreeId, t.LeafIdentityHash
		ON CONFLICT DO NOTHING
		RETURNING TreeId, LeafIdentityHash
	), queued AS (
		INSERT INTO Unsequenced (TreeId, Bucket, LeafIdentityHash, MerkleLeafHash, QueueTimestampNanos, QueueID)
		SELECT t.TreeId, 0, t.LeafIdentityHash, t.MerkleLeafHash, t.QueueTimestampNanos, t.QueueID
		FROM TempQueueLeaves t JOIN fresh USING (TreeId, LeafIdentityHash)
	)
	SELECT t.LeafIdentityHash FROM TempQueueLeaves t LEFT JOIN fresh f USING (TreeId, LeafIdentityHash) WHERE f.TreeId IS NULL;
END;
$$;
