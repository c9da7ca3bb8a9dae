ALTER TABLE "public"."orders" VALIDATE CONSTRAINT "pgonce_requires_state";
