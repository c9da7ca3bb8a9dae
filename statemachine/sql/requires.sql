ALTER TABLE "public"."orders" ADD CONSTRAINT "pgonce_requires_state" CHECK (/*requires*/) NOT VALID;
COMMENT ON CONSTRAINT "pgonce_requires_state" ON "public"."orders" IS '/*definition*/';
