-- The same books in PostgreSQL: four tables with the indexes of the four collections, and a function
-- that does the four writes of a charge in one round trip.

DROP TABLE IF EXISTS users, transactions, audit_logs, idempotency_records;

-- Room in every page, so that a balance is updated in place and no index is touched.
CREATE TABLE users (
    id text PRIMARY KEY,
    credits bigint NOT NULL CHECK (credits >= 0),
    membership_tier text,
    membership_expires_at timestamptz,
    seq bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX ON users (membership_tier);

CREATE TABLE transactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text NOT NULL,
    seq bigint NOT NULL,
    operation text NOT NULL,
    action text NOT NULL,
    amount bigint NOT NULL,
    balance_before bigint NOT NULL,
    balance_after bigint NOT NULL,
    metadata jsonb,
    idempotency_key text,
    refund_of bigint,
    created_at timestamptz NOT NULL
);
CREATE INDEX ON transactions (user_id, created_at DESC, seq DESC);
CREATE INDEX ON transactions (action);
CREATE INDEX ON transactions (refund_of) WHERE refund_of IS NOT NULL;

CREATE TABLE audit_logs (
    id bigint PRIMARY KEY,
    user_id text NOT NULL,
    operation text NOT NULL,
    action text NOT NULL,
    status text NOT NULL,
    details jsonb,
    metadata jsonb,
    error_message text,
    created_at timestamptz NOT NULL
);
CREATE INDEX ON audit_logs (user_id, created_at DESC, id DESC);
CREATE INDEX ON audit_logs (status);

CREATE TABLE idempotency_records (
    key text PRIMARY KEY,
    operation text NOT NULL,
    user_id text NOT NULL,
    result jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX ON idempotency_records (expires_at);

-- The balance after the charge; NULL if the credits do not suffice. A key that was used undoes the
-- rest and raises unique_violation: the caller then reads what it did. So a charge with a new key,
-- which nearly all are, reads nothing that it does not write.
CREATE OR REPLACE FUNCTION charge(the_user text, the_action text, cost bigint, the_key text)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    balance bigint;
    number bigint;
    moment timestamptz;
    transaction_id bigint;
    facts jsonb;
BEGIN
    UPDATE users
    SET credits = credits - cost, seq = seq + 1,
        updated_at = greatest(updated_at, clock_timestamp())
    WHERE id = the_user AND credits >= cost
    RETURNING credits, seq, updated_at INTO balance, number, moment;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;

    INSERT INTO transactions (
        user_id, seq, operation, action, amount, balance_before, balance_after, idempotency_key,
        created_at
    ) VALUES (
        the_user, number, 'charge', the_action, -cost, balance + cost, balance, the_key, moment
    ) RETURNING id INTO transaction_id;

    facts := jsonb_build_object(
        'transaction_id', transaction_id, 'cost', cost,
        'balance_before', balance + cost, 'balance_after', balance
    );
    INSERT INTO audit_logs (id, user_id, operation, action, status, details, created_at)
    VALUES (transaction_id, the_user, 'charge', the_action, 'success', facts, moment);

    INSERT INTO idempotency_records (key, operation, user_id, result, created_at, expires_at)
    VALUES (the_key, 'charge', the_user, facts, moment, moment + interval '1 day')
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RAISE unique_violation USING MESSAGE = 'the key was used';
    END IF;
    RETURN balance;
END
$$;
