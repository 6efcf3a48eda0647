package services

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/trillian"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestMariaDBKeepsWhatItCommitted(t *testing.T) {
	s := StartMariaDB(t)
	dsn := s.Database(t)
	if other := s.Database(t); other == dsn {
		t.Fatal("two databases have one name")
	}
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE kept (x INT) SELECT 7 AS x`); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("a killed server answers")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	var x, flush int
	if err := db.QueryRowContext(t.Context(), `SELECT x, @@innodb_flush_log_at_trx_commit FROM kept`).Scan(&x, &flush); err != nil || x != 7 || flush != 1 {
		t.Errorf("after a restart: %d, flush %d, %v", x, flush, err)
	}
}

func TestVersityGWHonoursPreconditions(t *testing.T) {
	s := VersityGW(t)
	client := s3.New(s3.Options{Region: "us-east-1", BaseEndpoint: aws.String(s.Endpoint), UsePathStyle: true, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, "")})
	put := func(body string) error {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.Bucket, Key: aws.String("a/b"), IfNoneMatch: aws.String("*"), Body: bytes.NewReader([]byte(body))})
		return err
	}
	if err := put("first"); err != nil {
		t.Fatal(err)
	}
	if err := put("second"); err == nil {
		t.Error("an object was overwritten against If-None-Match")
	}
	s.Kill()
	if resp, err := http.Get(s.Endpoint); err == nil {
		resp.Body.Close()
		t.Error("a killed server answers")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.Bucket, Key: aws.String("a/b")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if body, err := io.ReadAll(out.Body); err != nil || string(body) != "first" {
		t.Errorf("after a restart: %q, %v", body, err)
	}
}

func TestTrillianIntegratesWhatIsQueued(t *testing.T) {
	s := Trillian(t, Postgres(t))
	conn, err := grpc.NewClient(s.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tree, err := trillian.NewTrillianAdminClient(conn).CreateTree(t.Context(), &trillian.CreateTreeRequest{Tree: &trillian.Tree{
		TreeState: trillian.TreeState_ACTIVE, TreeType: trillian.TreeType_LOG, MaxRootDuration: durationpb.New(0)}})
	if err != nil {
		t.Fatal(err)
	}
	client := trillian.NewTrillianLogClient(conn)
	if _, err := client.InitLog(t.Context(), &trillian.InitLogRequest{LogId: tree.TreeId}); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if _, err := client.QueueLeaf(t.Context(), &trillian.QueueLeafRequest{LogId: tree.TreeId, Leaf: &trillian.LogLeaf{LeafValue: []byte("x")}}); err == nil {
		t.Error("a killed server answers")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.QueueLeaf(t.Context(), &trillian.QueueLeafRequest{LogId: tree.TreeId, Leaf: &trillian.LogLeaf{LeafValue: []byte("x")}}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	integrated := func(ctx context.Context) bool {
		resp, err := client.GetLeavesByRange(ctx, &trillian.GetLeavesByRangeRequest{LogId: tree.TreeId, Count: 1})
		return err == nil && len(resp.Leaves) == 1 && string(resp.Leaves[0].LeafValue) == "x"
	}
	waitFor(t, "the leaf is in the tree", func() bool { return integrated(t.Context()) })
}
